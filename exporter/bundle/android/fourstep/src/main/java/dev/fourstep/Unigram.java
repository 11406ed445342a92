package dev.fourstep;

import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** The unigram model (Kudo 2018): the pieces of a word whose log probabilities sum up to most. */
final class Unigram implements Vocabulary {
    private static final double UNKNOWN_PENALTY = 10;

    private final Map<String, Integer> ids = new HashMap<>();
    private final double[] scores;
    private final int unknown; // -1: none
    private final double unknownScore;
    private int longest;

    Unigram(Node model) {
        List<Node> pieces = model.get("vocab").items();
        scores = new double[pieces.size()];
        double least = Double.POSITIVE_INFINITY;
        for (int i = 0; i < scores.length; i++) {
            List<Node> piece = pieces.get(i).items();
            if (piece.size() != 2 || piece.get(0).text().isEmpty()) {
                throw pieces.get(i).wrong("a piece and its score are expected");
            }
            ids.put(piece.get(0).text(), i);
            scores[i] = piece.get(1).number();
            least = Math.min(least, scores[i]);
            longest = Math.max(longest, piece.get(0).text().length());
        }
        if (model.find("byte_fallback") != null && model.get("byte_fallback").flag()) {
            throw model.get("byte_fallback").wrong("is not known of Unigram");
        }
        unknown = model.find("unk_id") == null
                ? -1 : (int) model.get("unk_id").whole(0, scores.length - 1);
        unknownScore = least - UNKNOWN_PENALTY;
    }

    @Override
    public Map<String, Integer> ids() {
        return ids;
    }

    @Override
    public void encode(String word, IntList into) {
        int[] start = new int[word.length() + 1]; // of the best piece that ends here, 0 based
        int[] piece = new int[word.length() + 1];
        double[] best = new double[word.length() + 1];
        java.util.Arrays.fill(start, -1);
        for (int i = 0; i < word.length(); i += Character.charCount(word.codePointAt(i))) {
            step(word, i, start, piece, best);
        }
        String[] found = new String[word.length()];
        int count = 0;
        for (int end = word.length(); end > 0; ) {
            int from = start[end];
            while (piece[end] == unknown && from > 0 && piece[from] == unknown) {
                from = start[from]; // what is not known in a row is one piece
            }
            found[count++] = word.substring(from, end);
            end = from;
        }
        while (count > 0) {
            into.add(id(found[--count]));
        }
    }

    private void step(String word, int from, int[] start, int[] piece, double[] best) {
        int single = from + Character.charCount(word.codePointAt(from));
        boolean hasSingle = false;
        for (int end = from + 1; end <= Math.min(from + longest, word.length()); end++) {
            Integer id = ids.get(word.substring(from, end));
            if (id != null) {
                offer(from, end, id, scores[id], start, piece, best);
                hasSingle |= end == single;
            }
        }
        if (!hasSingle) {
            offer(from, single, unknown, unknownScore, start, piece, best);
        }
    }

    private static void offer(
            int from, int end, int id, double score, int[] start, int[] piece, double[] best) {
        double sum = score + best[from];
        if (start[end] < 0 || sum > best[end]) {
            start[end] = from;
            piece[end] = id;
            best[end] = sum;
        }
    }

    private int id(String found) {
        Integer id = ids.get(found);
        if (id == null && unknown < 0) {
            throw new RequestException("prompt", Text.quoted(found) + " is not in the vocabulary");
        }
        return id == null ? unknown : id;
    }
}
