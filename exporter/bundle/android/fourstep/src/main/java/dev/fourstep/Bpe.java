package dev.fourstep;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.PriorityQueue;

/** Byte-pair encoding (Sennrich et al. 2016): a word's characters, merged by the rank of pairs. */
final class Bpe implements Vocabulary {
    private final Map<String, Integer> ids = new HashMap<>();
    private final Map<Long, int[]> merges = new HashMap<>(); // of two ids: rank, and the merged id
    private final String prefix;
    private final String suffix;
    private final int unknown; // -1: none, and such characters are left out
    private final boolean fusesUnknown;
    private final boolean ignoresMerges;

    Bpe(Node model) {
        for (Map.Entry<String, Node> entry : model.get("vocab").entries().entrySet()) {
            ids.put(entry.getKey(), (int) entry.getValue().whole(0, Integer.MAX_VALUE));
        }
        prefix = optional(model, "continuing_subword_prefix");
        suffix = optional(model, "end_of_word_suffix");
        unknown = model.find("unk_token") == null ? -1 : id(model.get("unk_token"));
        fusesUnknown = isSet(model, "fuse_unk");
        ignoresMerges = isSet(model, "ignore_merges");
        if (model.find("dropout") != null && model.get("dropout").number() != 0) {
            throw model.get("dropout").wrong("a prompt has one row of ids: none is expected");
        }
        if (isSet(model, "byte_fallback")) {
            throw model.get("byte_fallback").wrong("is not known of BPE");
        }
        int rank = 0;
        for (Node merge : model.get("merges").items()) {
            merge(merge, rank++);
        }
    }

    private static String optional(Node model, String key) {
        return model.find(key) == null ? "" : model.get(key).text();
    }

    private static boolean isSet(Node model, String key) {
        return model.find(key) != null && model.get(key).flag();
    }

    private int id(Node token) {
        return id(token, token.text());
    }

    private int id(Node place, String token) {
        Integer id = ids.get(token);
        if (id == null) {
            throw place.wrong("'" + token + "' is not in the vocabulary");
        }
        return id;
    }

    private void merge(Node node, int rank) {
        String left;
        String right;
        if (node.value instanceof String) {
            String[] parts = node.text().split(" ", -1);
            if (parts.length != 2) {
                throw node.wrong("two tokens are expected, as in 'a b'");
            }
            left = parts[0];
            right = parts[1];
        } else {
            List<Node> parts = node.items();
            if (parts.size() != 2) {
                throw node.wrong("two tokens are expected");
            }
            left = parts.get(0).text();
            right = parts.get(1).text();
        }
        String bare = right.startsWith(prefix) ? right.substring(prefix.length()) : right;
        int[] found = {rank, id(node, left + bare)};
        merges.put(pair(id(node, left), id(node, right)), found);
    }

    private static long pair(int left, int right) {
        return (long) left << 32 | right;
    }

    @Override
    public Map<String, Integer> ids() {
        return ids;
    }

    @Override
    public void encode(String word, IntList into) {
        if (ignoresMerges && ids.containsKey(word)) {
            into.add(ids.get(word));
            return;
        }
        IntList symbols = symbols(word);
        int count = symbols.size();
        int[] before = new int[count];
        int[] after = new int[count];
        PriorityQueue<long[]> queue = // rank, place, left and right id
                new PriorityQueue<>((a, b) -> a[0] != b[0]
                        ? Long.compare(a[0], b[0]) : Long.compare(a[1], b[1]));
        for (int i = 0; i < count; i++) {
            before[i] = i - 1;
            after[i] = i + 1;
            offer(queue, symbols, i, i + 1);
        }
        while (!queue.isEmpty()) {
            long[] next = queue.poll();
            int left = (int) next[1];
            int right = symbols.get(left) < 0 ? count : after[left];
            if (right >= count || pair(symbols.get(left), symbols.get(right)) != next[2]) {
                continue; // one of the two was merged meanwhile
            }
            symbols.set(left, merges.get(next[2])[1]);
            symbols.set(right, -1);
            after[left] = after[right];
            if (after[left] < count) {
                before[after[left]] = left;
            }
            offer(queue, symbols, before[left], left);
            offer(queue, symbols, left, after[left]);
        }
        for (int i = 0; i < count; i = after[i]) {
            into.add(symbols.get(i));
        }
    }

    private void offer(PriorityQueue<long[]> queue, IntList symbols, int left, int right) {
        if (left < 0 || right >= symbols.size()) {
            return;
        }
        long pair = pair(symbols.get(left), symbols.get(right));
        int[] merge = merges.get(pair);
        if (merge != null) {
            queue.add(new long[] {merge[0], left, pair});
        }
    }

    private IntList symbols(String word) {
        IntList found = new IntList();
        boolean wasUnknown = false;
        for (int i = 0; i < word.length(); ) {
            int end = i + Character.charCount(word.codePointAt(i));
            String symbol = (i == 0 ? "" : prefix) + word.substring(i, end)
                    + (end == word.length() ? suffix : "");
            Integer id = ids.get(symbol);
            boolean isUnknown = id == null;
            if (!isUnknown) {
                found.add(id);
            } else if (unknown >= 0 && !(wasUnknown && fusesUnknown)) {
                found.add(unknown);
            }
            wasUnknown = isUnknown;
            i = end;
        }
        return found;
    }
}
