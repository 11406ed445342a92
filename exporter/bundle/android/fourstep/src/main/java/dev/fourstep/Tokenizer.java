package dev.fourstep;

import dev.fourstep.Manifest.TokenizerEntry;
import dev.fourstep.Normalizer.Match;
import dev.fourstep.Normalizer.Pattern;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Prompts to ids, as a {@code tokenizer.json} says: its parts are interpreted, and one that is not
 * known is refused.
 */
public final class Tokenizer {
    static final int MOST_CHARACTERS = 100_000;
    private static final String GPT_2 =
            "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

    private final TokenizerEntry entry;
    private final Normalizer normalizer;
    private final Vocabulary vocabulary;
    private final List<Splitter> splitters = new ArrayList<>();
    private final List<Added> raw = new ArrayList<>(); // cut out before a text is normalized
    private final List<Added> normalized = new ArrayList<>(); // and after
    private int[] before = {};
    private int[] after = {};
    private int largest;

    /** A piece of a prompt: text, or the id of an added token. */
    private static final class Piece {
        final String text;
        final int id; // -1: text
        final boolean isFirst; // of the prompt

        Piece(String text, int id, boolean isFirst) {
            this.text = text;
            this.id = id;
            this.isFirst = isFirst;
        }
    }

    private interface Splitter {
        List<String> split(String text, boolean isFirst);
    }

    private static final class Added {
        final String content;
        final int id;
        final boolean stripsLeft;
        final boolean stripsRight;

        Added(Node node, Normalizer normalizer) {
            boolean isNormalized = node.find("normalized") != null && node.get("normalized").flag();
            String text = node.get("content").text();
            content = isNormalized ? normalizer.apply(text) : text;
            id = (int) node.get("id").whole(0, Integer.MAX_VALUE);
            stripsLeft = node.find("lstrip") != null && node.get("lstrip").flag();
            stripsRight = node.find("rstrip") != null && node.get("rstrip").flag();
            if (node.find("single_word") != null && node.get("single_word").flag()) {
                throw node.get("single_word").wrong("is not known");
            }
        }
    }

    /**
     * The tokenizer in a file's bytes.
     *
     * @throws IllegalArgumentException naming the part that is wrong or not known
     */
    Tokenizer(byte[] content, TokenizerEntry entry) {
        this.entry = entry;
        Node file = new Node(Json.parse(content), "");
        normalizer = Normalizer.of(file.find("normalizer"));
        Node model = file.get("model");
        vocabulary = model.get("type").oneOf("BPE", "Unigram").equals("BPE")
                ? new Bpe(model) : new Unigram(model);
        for (int id : vocabulary.ids().values()) {
            largest = Math.max(largest, id);
        }
        if (file.find("added_tokens") != null) {
            for (Node node : file.get("added_tokens").items()) {
                added(node);
            }
        }
        if (file.find("pre_tokenizer") != null) {
            splitter(file.get("pre_tokenizer"));
        }
        if (file.find("post_processor") != null) {
            surroundings(file.get("post_processor"));
        }
        if (largest >= entry.vocabularySize) {
            throw new IllegalArgumentException("has ids up to " + largest
                    + " and the manifest allows " + entry.vocabularySize
                    + "; build the package again");
        }
    }

    private void added(Node node) {
        Added token = new Added(node, normalizer);
        boolean isNormalized = node.find("normalized") != null && node.get("normalized").flag();
        if (!token.content.isEmpty()) {
            (isNormalized ? normalized : raw).add(token);
        }
        largest = Math.max(largest, token.id);
    }

    /**
     * Ids of a prompt (1, tokens): the first of a long one and its closing one, or padded.
     *
     * @throws RequestException for a prompt that is no text
     */
    int[] encode(String prompt) {
        int[] all = ids(prompt);
        int[] row = Arrays.copyOf(all, entry.tokens);
        if (all.length > row.length) {
            row[row.length - 1] = all[all.length - 1];
        } else {
            Arrays.fill(row, all.length, row.length, entry.padId);
        }
        return row;
    }

    /** All ids of a prompt, with those before and after it, neither cut nor padded. */
    int[] ids(String prompt) {
        IntList found = new IntList();
        for (int id : before) {
            found.add(id);
        }
        for (Piece piece : cut(Arrays.asList(new Piece(prompt, -1, true)), raw)) {
            if (piece.id >= 0) {
                found.add(piece.id);
                continue;
            }
            Piece ready = new Piece(normalizer.apply(piece.text), -1, piece.isFirst);
            for (Piece part : cut(Arrays.asList(ready), normalized)) {
                encode(part, found);
            }
        }
        for (int id : after) {
            found.add(id);
        }
        return found.toArray();
    }

    private void encode(Piece piece, IntList into) {
        if (piece.id >= 0) {
            into.add(piece.id);
            return;
        }
        List<Piece> words = Arrays.asList(piece);
        for (Splitter splitter : splitters) {
            List<Piece> smaller = new ArrayList<>();
            for (Piece word : words) {
                boolean isFirst = word.isFirst;
                for (String part : splitter.split(word.text, isFirst)) {
                    if (!part.isEmpty()) {
                        smaller.add(new Piece(part, -1, isFirst));
                    }
                    isFirst = false;
                }
            }
            words = smaller;
        }
        for (Piece word : words) {
            if (!word.text.isEmpty()) {
                vocabulary.encode(word.text, into);
            }
        }
    }

    /** Pieces with added tokens cut out: the leftmost, and of those the longest. */
    private static List<Piece> cut(List<Piece> pieces, List<Added> tokens) {
        List<Piece> found = new ArrayList<>();
        for (Piece piece : pieces) {
            String text = piece.text;
            int rest = 0;
            for (int at = 0; at < text.length(); ) {
                Added token = longest(text, at, tokens);
                if (token == null) {
                    at++;
                    continue;
                }
                int start = token.stripsLeft
                        ? Math.max(rest, Normalizer.stripped(text.substring(0, at), false, true)
                                .length())
                        : at;
                at += token.content.length();
                if (start > rest) {
                    found.add(new Piece(text.substring(rest, start), -1,
                            piece.isFirst && rest == 0));
                }
                found.add(new Piece("", token.id, false));
                rest = token.stripsRight
                        ? text.length() - Normalizer.stripped(text.substring(at), true, false)
                                .length()
                        : at;
                at = Math.max(at, rest);
            }
            if (rest < text.length()) {
                found.add(new Piece(text.substring(rest), -1, piece.isFirst && rest == 0));
            }
        }
        return found;
    }

    private static Added longest(String text, int at, List<Added> tokens) {
        Added found = null;
        for (Added token : tokens) {
            boolean isLonger = found == null || token.content.length() > found.content.length();
            if (isLonger && text.startsWith(token.content, at)) {
                found = token;
            }
        }
        return found;
    }

    private void splitter(Node node) {
        switch (node.get("type").text()) {
            case "Sequence":
                for (Node part : node.get("pretokenizers").items()) {
                    splitter(part);
                }
                break;
            case "Split":
                splitters.add(split(node));
                break;
            case "WhitespaceSplit":
                splitters.add((text, isFirst) -> words(text));
                break;
            case "Metaspace":
                splitters.add(metaspace(node));
                break;
            case "ByteLevel":
                splitters.add(byteLevel(node));
                break;
            default:
                throw node.get("type").wrong("'" + node.get("type").value + "' is not known");
        }
    }

    private static Splitter split(Node node) {
        Pattern pattern = Pattern.of(node.get("pattern"));
        boolean keepsMatches = node.get("invert").flag();
        boolean removes = node.get("behavior").oneOf("Removed", "Isolated").equals("Removed");
        return (text, isFirst) -> {
            List<String> found = new ArrayList<>();
            for (Match part : pattern.parts(text)) {
                if (!removes || part.isMatch == keepsMatches) {
                    found.add(part.text);
                }
            }
            return found;
        };
    }

    private static List<String> words(String text) {
        List<String> found = new ArrayList<>();
        Unicode unicode = Unicode.tables();
        int start = 0;
        for (int at = 0; at < text.length(); ) {
            int point = text.codePointAt(at);
            int end = at + Character.charCount(point);
            if (unicode.isWhiteSpace(point)) {
                found.add(text.substring(start, at));
                start = end;
            }
            at = end;
        }
        found.add(text.substring(start));
        return found;
    }

    private static Splitter metaspace(Node node) {
        String mark = node.get("replacement").text();
        Node given = node.find("prepend_scheme");
        String scheme = given == null ? "always" : given.oneOf("always", "first", "never");
        boolean splits = node.find("split") == null || node.get("split").flag();
        return (text, isFirst) -> {
            String marked = text.replace(" ", mark);
            boolean leads = scheme.equals("always") || scheme.equals("first") && isFirst;
            String whole = leads && !marked.startsWith(mark) ? mark + marked : marked;
            List<String> found = new ArrayList<>();
            int start = 0;
            for (int at = whole.indexOf(mark, 1); splits && at > 0;
                    at = whole.indexOf(mark, at + 1)) {
                found.add(whole.substring(start, at));
                start = at;
            }
            found.add(whole.substring(start));
            return found;
        };
    }

    private static Splitter byteLevel(Node node) {
        boolean leads = node.get("add_prefix_space").flag();
        boolean cuts = node.find("use_regex") == null || node.get("use_regex").flag();
        Pattern pattern = Pattern.of(GPT_2);
        char[] letters = letters();
        return (text, isFirst) -> {
            String whole = leads && !text.startsWith(" ") ? " " + text : text;
            List<String> found = new ArrayList<>();
            List<Match> parts = cuts ? pattern.parts(whole) : Arrays.asList(new Match(whole, true));
            for (Match part : parts) {
                StringBuilder shown = new StringBuilder();
                for (byte value : part.text.getBytes(StandardCharsets.UTF_8)) {
                    shown.append(letters[value & 0xFF]);
                }
                found.add(shown.toString());
            }
            return found;
        };
    }

    /** A letter that can be seen for each byte: its own, or one from U+0100 on (GPT-2). */
    private static char[] letters() {
        char[] found = new char[256];
        char other = 256;
        for (int i = 0; i < 256; i++) {
            boolean isSeen = i >= '!' && i <= '~' || i >= 0xA1 && i <= 0xAC || i >= 0xAE;
            found[i] = isSeen ? (char) i : other++;
        }
        return found;
    }

    private void surroundings(Node node) {
        switch (node.get("type").text()) {
            case "RobertaProcessing":
            case "BertProcessing":
                before = new int[] {special(node.get("cls"))};
                after = new int[] {special(node.get("sep"))};
                break;
            case "TemplateProcessing":
                template(node);
                break;
            default:
                throw node.get("type").wrong("'" + node.get("type").value + "' is not known");
        }
    }

    private int special(Node pair) {
        List<Node> items = pair.items();
        if (items.size() != 2) {
            throw pair.wrong("a token and its id are expected");
        }
        return id(items.get(1));
    }

    private int id(Node node) {
        int id = (int) node.whole(0, Integer.MAX_VALUE);
        largest = Math.max(largest, id);
        return id;
    }

    private void template(Node node) {
        Map<String, IntList> sides = new LinkedHashMap<>();
        IntList side = new IntList();
        Node tokens = node.get("special_tokens");
        for (Node item : node.get("single").items()) {
            Node token = item.find("SpecialToken");
            if (token == null) {
                if (!item.get("Sequence").get("id").text().equals("A") || !sides.isEmpty()) {
                    throw item.wrong("one sequence A is expected");
                }
                sides.put("before", side);
                side = new IntList();
                continue;
            }
            for (Node id : tokens.get(token.get("id").text()).get("ids").items()) {
                side.add(id(id));
            }
        }
        if (sides.isEmpty()) {
            throw node.get("single").wrong("one sequence A is expected");
        }
        before = sides.get("before").toArray();
        after = side.toArray();
    }

    /** Raise RequestException for what is no text, or longer than any encoder could read. */
    static void check(String prompt, String field) {
        if (prompt == null) {
            throw new RequestException(field, "is null; a text is expected");
        }
        if (!Text.isWhole(prompt)) {
            throw new RequestException(field, Text.quoted(prompt) + " is not UTF-8 text: half of a "
                    + "surrogate pair is in it");
        }
        int count = prompt.codePointCount(0, prompt.length());
        if (count > MOST_CHARACTERS) {
            throw new RequestException(field, "has " + count + " characters: at most "
                    + MOST_CHARACTERS);
        }
    }
}
