package dev.fourstep;

import java.util.ArrayList;
import java.util.List;

/**
 * The regular expressions that tokenizers are written with, over code points and our own tables.
 *
 * <p>Alternatives of characters, {@code \s \S \p{L} \p{N}}, classes of those, {@code + * ?} and
 * {@code {n,m}}, and {@code (?!x)} of one character. The platform's own expressions have another
 * Unicode in them, so anything else is refused rather than handed on.
 */
final class Regex {
    private final String pattern;
    private final Unicode unicode;
    private final List<List<Atom>> alternatives = new ArrayList<>();
    private int at;

    /** One character of a set, so and so often. */
    private static final class Atom {
        final List<int[]> ranges = new ArrayList<>(); // from and to; or a class and -1
        boolean isNegated;
        boolean isRefusal; // (?!x): matches where x does not come next
        int least = 1;
        int most = 1;
    }

    /** Raises IllegalArgumentException for an expression with anything else in it. */
    Regex(String pattern, Unicode unicode) {
        this.pattern = pattern;
        this.unicode = unicode;
        List<Atom> atoms = new ArrayList<>();
        while (at < pattern.length()) {
            if (pattern.charAt(at) == '|') {
                at++;
                alternatives.add(atoms);
                atoms = new ArrayList<>();
            } else {
                atoms.add(atom());
            }
        }
        alternatives.add(atoms);
    }

    /** Where a match that begins at {@code from} ends, or -1: the first alternative that does. */
    int end(String text, int from) {
        for (List<Atom> atoms : alternatives) {
            int end = end(atoms, 0, text, from);
            if (end >= 0) {
                return end;
            }
        }
        return -1;
    }

    private int end(List<Atom> atoms, int index, String text, int from) {
        if (index == atoms.size()) {
            return from;
        }
        Atom atom = atoms.get(index);
        if (atom.isRefusal) {
            return has(atom, text, from) ? -1 : end(atoms, index + 1, text, from);
        }
        int to = from;
        int count = 0;
        while (count < atom.most && has(atom, text, to)) {
            to += Character.charCount(text.codePointAt(to));
            count++;
        }
        while (count >= atom.least) { // as many as there are, then fewer
            int end = end(atoms, index + 1, text, to);
            if (end >= 0 || count == 0) {
                return end;
            }
            to -= Character.charCount(text.codePointBefore(to));
            count--;
        }
        return -1;
    }

    private boolean has(Atom atom, String text, int place) {
        if (place >= text.length()) {
            return false;
        }
        int point = text.codePointAt(place);
        boolean found = false;
        for (int[] range : atom.ranges) {
            found |= range[1] < 0 ? isOf(range[0], point) : point >= range[0] && point <= range[1];
        }
        return found != atom.isNegated;
    }

    private boolean isOf(int kind, int point) {
        switch (kind) {
            case 's':
                return unicode.isSpace(point);
            case 'S':
                return !unicode.isSpace(point);
            case 'L':
                return unicode.isLetter(point);
            default:
                return unicode.isNumber(point);
        }
    }

    private Atom atom() {
        Atom atom = new Atom();
        if (taken("(?!")) {
            atom.isRefusal = true;
            atom.ranges.add(one(false));
            expect(")");
            return atom;
        }
        if (taken("[")) {
            atom.isNegated = taken("^");
            do {
                atom.ranges.add(one(true));
            } while (!taken("]"));
        } else {
            atom.ranges.add(one(false));
        }
        quantify(atom);
        return atom;
    }

    private void quantify(Atom atom) {
        if (taken("+")) {
            atom.most = Integer.MAX_VALUE;
        } else if (taken("*")) {
            atom.least = 0;
            atom.most = Integer.MAX_VALUE;
        } else if (taken("?")) {
            atom.least = 0;
        } else if (taken("{")) {
            atom.least = number();
            atom.most = taken(",") ? (taken("}") ? Integer.MAX_VALUE : number()) : atom.least;
            if (atom.most != Integer.MAX_VALUE) {
                expect("}");
            }
        }
        if (at < pattern.length() && "+*?{".indexOf(pattern.charAt(at)) >= 0) {
            throw unknown();
        }
    }

    private int number() {
        int start = at;
        while (at < pattern.length() && at < start + 6 && Character.digit(pattern.charAt(at), 10) >= 0) {
            at++;
        }
        if (at == start) {
            throw unknown();
        }
        return Integer.parseInt(pattern.substring(start, at));
    }

    /** A character, a range of them in a class, or a class of Unicode. */
    private int[] one(boolean inClass) {
        if (taken("\\p{L}")) {
            return new int[] {'L', -1};
        }
        if (taken("\\p{N}")) {
            return new int[] {'N', -1};
        }
        if (taken("\\s")) {
            return new int[] {'s', -1};
        }
        if (taken("\\S")) {
            return new int[] {'S', -1};
        }
        int first = character(inClass);
        boolean isRange = inClass && at + 1 < pattern.length() && pattern.charAt(at) == '-'
                && pattern.charAt(at + 1) != ']';
        if (!isRange) {
            return new int[] {first, first};
        }
        at++;
        return new int[] {first, character(true)};
    }

    private int character(boolean inClass) {
        boolean isEscaped = taken("\\");
        if (at >= pattern.length()) {
            throw unknown();
        }
        int point = pattern.codePointAt(at);
        String special = inClass ? "[]^&" : "()[]{}.^$*+?|";
        if (isEscaped && (point > 0x7e || Character.isLetterOrDigit(point))) {
            int place = "ntrfv".indexOf(point);
            if (place < 0) {
                throw unknown();
            }
            at++;
            return "\n\t\r\f\u000b".charAt(place);
        }
        if (!isEscaped && special.indexOf(point) >= 0) {
            throw unknown();
        }
        at += Character.charCount(point);
        return point;
    }

    private boolean taken(String part) {
        boolean is = pattern.startsWith(part, at);
        at += is ? part.length() : 0;
        return is;
    }

    private void expect(String part) {
        if (!taken(part)) {
            throw unknown();
        }
    }

    private IllegalArgumentException unknown() {
        return new IllegalArgumentException(
                "the expression '" + pattern + "' is not known from character " + at + " on");
    }
}
