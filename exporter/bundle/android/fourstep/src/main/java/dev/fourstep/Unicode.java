package dev.fourstep;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

/**
 * Unicode as the {@code tokenizers} library has it, from {@code unicode.bin} beside this class.
 *
 * <p>The platform's own tables are of another version, and lower case is another function there.
 */
final class Unicode {
    // Grapheme classes, and those of conjuncts, as the file numbers them.
    private static final int CONTROL = 1;
    private static final int EXTEND = 2;
    private static final int SPACING = 3;
    private static final int JOINER = 4;
    private static final int PREPEND = 5;
    private static final int L = 6;
    private static final int V = 7;
    private static final int T = 8;
    private static final int LV = 9;
    private static final int LVT = 10;
    private static final int PICTOGRAPH = 11;
    private static final int CONSONANT = 1;
    private static final int LINKER = 2;

    private static final int SYLLABLES = 0xAC00;
    private static final int LEADS = 0x1100;
    private static final int VOWELS = 0x1161;
    private static final int TAILS = 0x11A7; // one before the first
    private static final int LEAD_COUNT = 19;
    private static final int VOWEL_COUNT = 21;
    private static final int TAIL_COUNT = 28;
    private static final int SYLLABLE_COUNT = LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT;

    private final int[] starts; // of runs with the same properties
    private final int[] properties;
    private final Map<Integer, Integer> ranks = new HashMap<>();
    private final Map<Integer, int[]> lower = new HashMap<>();
    private final Map<Integer, int[]> parts = new HashMap<>();
    private final Map<Long, Integer> wholes = new HashMap<>();

    private final byte[] file;
    private int at;

    private static final class Holder {
        static final Unicode ONE = new Unicode(read());
    }

    static Unicode tables() {
        return Holder.ONE;
    }

    private static byte[] read() {
        try (InputStream stream = Unicode.class.getResourceAsStream("unicode.bin")) {
            if (stream == null) {
                throw new FourstepException("unicode.bin is not among the library's resources; "
                        + "copy fourstep/src/main/resources too");
            }
            ByteArrayOutputStream all = new ByteArrayOutputStream();
            byte[] part = new byte[1 << 14];
            for (int count = stream.read(part); count >= 0; count = stream.read(part)) {
                all.write(part, 0, count);
            }
            return all.toByteArray();
        } catch (IOException error) {
            throw new FourstepException("unicode.bin: cannot be read: " + error.getMessage(), error);
        }
    }

    private Unicode(byte[] file) {
        this.file = file;
        while (file[at++] != 0) { // the head says what it is
        }
        int runs = number();
        starts = new int[runs];
        properties = new int[runs];
        for (int i = 0, start = 0; i < runs; i++) {
            starts[i] = start;
            start += number();
            properties[i] = number();
        }
        for (int i = number(), point = 0; i > 0; i--) {
            point += number();
            int length = number();
            int rank = number();
            for (int k = 0; k < length; k++) {
                ranks.put(point++, rank);
            }
        }
        for (int i = number(), point = 0; i > 0; i--) {
            point += number();
            lower.put(point, numbers(number()));
        }
        for (int i = number(), point = 0; i > 0; i--) {
            point += number();
            boolean composes = number() == 1;
            int[] found = numbers(number());
            parts.put(point, found);
            if (composes) {
                wholes.put(pair(found[0], found[1]), point);
            }
        }
    }

    private int number() {
        int value = 0;
        int shift = 0;
        for (; file[at] < 0; at++, shift += 7) {
            value |= (file[at] & 0x7F) << shift;
        }
        return value | file[at++] << shift;
    }

    private int[] numbers(int count) {
        int[] found = new int[count];
        for (int i = 0; i < count; i++) {
            found[i] = number();
        }
        return found;
    }

    private static long pair(int first, int second) {
        return (long) first << 32 | second;
    }

    private int propertiesOf(int point) {
        int place = Arrays.binarySearch(starts, point);
        return properties[place >= 0 ? place : -place - 2];
    }

    /** {@code \p{L}}. */
    boolean isLetter(int point) {
        return (propertiesOf(point) & 1 << 6) != 0;
    }

    /** {@code \p{N}}. */
    boolean isNumber(int point) {
        return (propertiesOf(point) & 1 << 7) != 0;
    }

    /** {@code \s} of regular expressions. */
    boolean isSpace(int point) {
        return (propertiesOf(point) & 1 << 8) != 0;
    }

    /** White space where no expression is named. */
    boolean isWhiteSpace(int point) {
        return (propertiesOf(point) & 1 << 9) != 0;
    }

    /** Lower case by code point: no final sigma. */
    String lower(String text) {
        StringBuilder found = new StringBuilder(text.length());
        text.codePoints().forEach(point -> {
            for (int part : lower.getOrDefault(point, new int[] {point})) {
                found.appendCodePoint(part);
            }
        });
        return found.toString();
    }

    /** Canonical decomposition (NFD), and composed again (NFC). */
    String normalized(String text, boolean composed) {
        IntList points = new IntList();
        text.codePoints().forEach(point -> decompose(point, points));
        int[] found = points.toArray();
        order(found);
        int count = composed ? compose(found) : found.length;
        return new String(found, 0, count);
    }

    private void decompose(int point, IntList into) {
        int syllable = point - SYLLABLES;
        if (syllable >= 0 && syllable < SYLLABLE_COUNT) {
            into.add(LEADS + syllable / (VOWEL_COUNT * TAIL_COUNT));
            into.add(VOWELS + syllable / TAIL_COUNT % VOWEL_COUNT);
            if (syllable % TAIL_COUNT != 0) {
                into.add(TAILS + syllable % TAIL_COUNT);
            }
            return;
        }
        int[] found = parts.get(point);
        if (found == null) {
            into.add(point);
            return;
        }
        for (int part : found) {
            decompose(part, into);
        }
    }

    private int rank(int point) {
        return ranks.getOrDefault(point, 0);
    }

    /** Sort each run of marks by rank, keeping the order of equal ones. */
    private void order(int[] points) {
        for (int start = 0; start < points.length; start++) {
            int end = start;
            while (end < points.length && rank(points[end]) > 0) {
                end++;
            }
            if (end - start > 1) {
                Integer[] marks = new Integer[end - start];
                for (int i = start; i < end; i++) {
                    marks[i - start] = points[i];
                }
                Arrays.sort(marks, (a, b) -> Integer.compare(rank(a), rank(b)));
                for (int i = start; i < end; i++) {
                    points[i] = marks[i - start];
                }
            }
            start = end;
        }
    }

    /** Compose in place; returns how many code points are left. */
    private int compose(int[] points) {
        int count = 0;
        int starter = -1;
        int last = -1; // the rank of what stands behind the starter; -1: nothing does
        for (int point : points) {
            int rank = rank(point);
            boolean isBlocked = last >= rank;
            int whole = starter < 0 || isBlocked ? -1 : whole(points[starter], point);
            if (whole >= 0) {
                points[starter] = whole;
                continue;
            }
            if (rank == 0) {
                starter = count;
                last = -1;
            } else {
                last = rank;
            }
            points[count++] = point;
        }
        return count;
    }

    private int whole(int first, int second) {
        int lead = first - LEADS;
        int vowel = second - VOWELS;
        if (lead >= 0 && lead < LEAD_COUNT && vowel >= 0 && vowel < VOWEL_COUNT) {
            return SYLLABLES + (lead * VOWEL_COUNT + vowel) * TAIL_COUNT;
        }
        int syllable = first - SYLLABLES;
        int tail = second - TAILS;
        if (syllable >= 0 && syllable < SYLLABLE_COUNT && syllable % TAIL_COUNT == 0
                && tail > 0 && tail < TAIL_COUNT) {
            return first + tail;
        }
        return wholes.getOrDefault(pair(first, second), -1);
    }

    /** Where the grapheme cluster that begins at {@code from} ends (UAX 29). */
    int clusterEnd(String text, int from) {
        int before = text.codePointAt(from);
        int at = from + Character.charCount(before);
        boolean afterPictograph = kind(before) == PICTOGRAPH; // and what extends it, and a joiner
        boolean afterConsonant = conjunct(before) == CONSONANT;
        boolean hasLinker = false;
        while (at < text.length()) {
            int point = text.codePointAt(at);
            boolean joins = joins(before, point)
                    || kind(before) == JOINER && afterPictograph && kind(point) == PICTOGRAPH
                    || afterConsonant && hasLinker && conjunct(point) == CONSONANT;
            if (!joins) {
                return at;
            }
            boolean extendsIt = kind(point) == EXTEND || kind(point) == JOINER;
            afterPictograph = kind(point) == PICTOGRAPH
                    || afterPictograph && extendsIt && kind(before) != JOINER;
            hasLinker = conjunct(point) == LINKER || conjunct(point) > LINKER && hasLinker;
            afterConsonant = conjunct(point) == CONSONANT
                    || afterConsonant && conjunct(point) >= LINKER;
            before = point;
            at += Character.charCount(point);
        }
        return at;
    }

    private int kind(int point) {
        return propertiesOf(point) & 15;
    }

    private int conjunct(int point) {
        return propertiesOf(point) >> 4 & 3;
    }

    private boolean joins(int before, int point) {
        if (before == '\r' && point == '\n') {
            return true;
        }
        int left = kind(before);
        int right = kind(point);
        if (left == CONTROL || right == CONTROL) {
            return false;
        }
        return right == EXTEND || right == JOINER || right == SPACING || left == PREPEND
                || left == L && (right == L || right == V || right == LV || right == LVT)
                || (left == LV || left == V) && (right == V || right == T)
                || (left == LVT || left == T) && right == T;
    }
}
