package dev.fourstep;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What is done with a text before it is cut into words: the normalizer of a tokenizer's file. */
interface Normalizer {
    String apply(String text);

    /** Raises IllegalArgumentException for a kind that is not known. */
    static Normalizer of(Node node) {
        if (node == null) {
            return text -> text;
        }
        Unicode unicode = Unicode.tables();
        switch (node.get("type").text()) {
            case "Sequence":
                List<Normalizer> all = new ArrayList<>();
                for (Node part : node.get("normalizers").items()) {
                    all.add(of(part));
                }
                return text -> {
                    for (Normalizer part : all) {
                        text = part.apply(text);
                    }
                    return text;
                };
            case "NFC":
                return text -> unicode.normalized(text, true);
            case "NFD":
                return text -> unicode.normalized(text, false);
            case "Lowercase":
                return unicode::lower;
            case "Replace":
                Pattern pattern = Pattern.of(node.get("pattern"));
                String content = node.get("content").text();
                return text -> pattern.replaced(text, content);
            case "Prepend":
                String prefix = node.get("prepend").text();
                return text -> text.isEmpty() ? text : prefix + text;
            case "Strip":
                boolean left = node.get("strip_left").flag();
                boolean right = node.get("strip_right").flag();
                return text -> stripped(text, left, right);
            case "Precompiled":
                return new Precompiled(node.get("precompiled_charsmap"));
            default:
                throw node.get("type").wrong("'" + node.get("type").value + "' is not known");
        }
    }

    /** A text without the white space at its ends. */
    static String stripped(String text, boolean left, boolean right) {
        int start = 0;
        int end = text.length();
        Unicode unicode = Unicode.tables();
        while (left && start < end && unicode.isWhiteSpace(text.codePointAt(start))) {
            start += Character.charCount(text.codePointAt(start));
        }
        while (right && end > start && unicode.isWhiteSpace(text.codePointBefore(end))) {
            end -= Character.charCount(text.codePointBefore(end));
        }
        return text.substring(start, end);
    }

    /** A text that is looked for, or an expression. */
    final class Pattern {
        private final String text;
        private final Regex regex;

        private Pattern(String text, Regex regex) {
            this.text = text;
            this.regex = regex;
        }

        static Pattern of(Node node) {
            Node text = node.find("String");
            if (text != null && text.text().isEmpty()) {
                throw text.wrong("is empty");
            }
            return text != null ? new Pattern(text.text(), null)
                    : new Pattern("", new Regex(node.get("Regex").text(), Unicode.tables()));
        }

        static Pattern of(String regex) {
            return new Pattern("", new Regex(regex, Unicode.tables()));
        }

        /** Where a match at {@code from} ends, or -1; matches of nothing do not count. */
        private int end(String where, int from) {
            int end = regex != null ? regex.end(where, from)
                    : where.startsWith(text, from) ? from + text.length() : -1;
            return end > from ? end : -1;
        }

        String replaced(String where, String content) {
            StringBuilder found = new StringBuilder();
            for (Match part : parts(where)) {
                found.append(part.isMatch ? content : part.text);
            }
            return found.toString();
        }

        /** The matches, and what lies between them. */
        List<Match> parts(String where) {
            List<Match> found = new ArrayList<>();
            int rest = 0;
            for (int at = 0; at < where.length(); ) {
                int end = end(where, at);
                if (end < 0) {
                    at += Character.charCount(where.codePointAt(at));
                    continue;
                }
                if (rest < at) {
                    found.add(new Match(where.substring(rest, at), false));
                }
                found.add(new Match(where.substring(at, end), true));
                at = end;
                rest = end;
            }
            if (rest < where.length()) {
                found.add(new Match(where.substring(rest), false));
            }
            return found;
        }
    }

    /** A piece of a text, and whether it is a match of a pattern. */
    final class Match {
        final String text;
        final boolean isMatch;

        Match(String text, boolean isMatch) {
            this.text = text;
            this.isMatch = isMatch;
        }
    }

    /** SentencePiece's map of grapheme clusters: a double array over their bytes, and texts. */
    final class Precompiled implements Normalizer {
        private static final int MOST_CLUSTER_BYTES = 5;

        private final int[] units;
        private final byte[] texts;

        Precompiled(Node node) {
            byte[] map = base64(node);
            ByteBuffer whole = ByteBuffer.wrap(map).order(ByteOrder.LITTLE_ENDIAN);
            int bytes = map.length < 4 ? -1 : whole.getInt(0);
            if (bytes < 4 || bytes % 4 != 0 || bytes > map.length - 4) {
                throw node.wrong("its tree is cut off");
            }
            units = new int[bytes / 4];
            whole.position(4);
            whole.asIntBuffer().get(units);
            texts = Arrays.copyOfRange(map, 4 + bytes, map.length);
        }

        /** Android has java.util.Base64 from level 26 on; the library wants less. */
        private static byte[] base64(Node node) {
            String letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            String text = node.text().replaceFirst("={0,2}$", "");
            byte[] found = new byte[(int) (text.length() * 3L / 4)];
            int bits = 0;
            for (int i = 0, count = 0, at = 0; i < text.length(); i++) {
                int digit = letters.indexOf(text.charAt(i));
                if (digit < 0) {
                    throw node.wrong("is not base64");
                }
                bits = bits << 6 | digit;
                count += 6;
                if (count >= 8) {
                    count -= 8;
                    found[at++] = (byte) (bits >> count);
                }
            }
            return found;
        }

        @Override
        public String apply(String text) {
            StringBuilder found = new StringBuilder(text.length());
            for (int start = 0; start < text.length(); ) {
                int end = Unicode.tables().clusterEnd(text, start);
                cluster(text.substring(start, end), found);
                start = end;
            }
            return found.toString();
        }

        private void cluster(String cluster, StringBuilder into) {
            byte[] bytes = cluster.getBytes(StandardCharsets.UTF_8);
            String whole = bytes.length <= MOST_CLUSTER_BYTES ? mapped(bytes) : null;
            if (whole != null) {
                into.append(whole);
                return;
            }
            cluster.codePoints().forEach(point -> {
                String one = new String(Character.toChars(point));
                String other = mapped(one.getBytes(StandardCharsets.UTF_8));
                into.append(other == null ? one : other);
            });
        }

        /** What stands for the shortest beginning of these bytes that is in the tree, or null. */
        private String mapped(byte[] key) {
            int at = offset(unit(0));
            for (byte part : key) {
                if (part == 0) {
                    return null;
                }
                at ^= part & 0xFF;
                int unit = unit(at);
                if ((unit & 0x800000FF) != (part & 0xFF)) {
                    return null;
                }
                at ^= offset(unit);
                if ((unit >> 8 & 1) == 1) {
                    return text(unit(at) & 0x7FFFFFFF);
                }
            }
            return null;
        }

        private int unit(int at) {
            return at >= 0 && at < units.length ? units[at] : 0;
        }

        private static int offset(int unit) {
            return unit >>> 10 << ((unit & 1 << 9) >>> 6);
        }

        private String text(int start) {
            int end = start;
            while (end < texts.length && texts[end] != 0) {
                end++;
            }
            return start > end ? "" : new String(texts, start, end - start, StandardCharsets.UTF_8);
        }
    }
}
