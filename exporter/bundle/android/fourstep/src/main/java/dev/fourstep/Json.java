package dev.fourstep;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Reads JSON (RFC 8259) into maps, lists, strings, numbers, booleans and null.
 *
 * <p>Whole numbers that fit become {@code Long}, all others {@code Double}. Of a key that is there
 * twice the last counts. Whatever is wrong raises {@link IllegalArgumentException} with its place.
 */
final class Json {
    private static final int MOST_DEPTH = 500;

    private final String text;
    private int at;
    private int depth;

    private Json(String text) {
        this.text = text;
    }

    /** The value of a UTF-8 text. */
    static Object parse(byte[] utf8) {
        Json json = new Json(decode(utf8));
        Object value = json.value();
        json.space();
        if (json.at < json.text.length()) {
            throw json.wrong("something stands behind the end");
        }
        return value;
    }

    /** UTF-8 as a string; raises IllegalArgumentException for bytes that are no UTF-8. */
    static String decode(byte[] utf8) {
        try {
            return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(utf8)).toString();
        } catch (CharacterCodingException error) {
            throw new IllegalArgumentException("not UTF-8 text", error);
        }
    }

    private IllegalArgumentException wrong(String what) {
        return new IllegalArgumentException("not JSON: " + what + " (character " + at + ")");
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private char next() {
        if (at == text.length()) {
            throw wrong("it ends too early");
        }
        return text.charAt(at++);
    }

    /** Whether the next character but white space is this one, which is then taken. */
    private boolean taken(char wanted) {
        space();
        boolean is = at < text.length() && text.charAt(at) == wanted;
        at += is ? 1 : 0;
        return is;
    }

    private Object value() {
        space();
        char first = next();
        if (++depth > MOST_DEPTH) {
            throw wrong("nested too deeply");
        }
        Object found = first == '{' ? object()
                : first == '[' ? list()
                : first == '"' ? string()
                : first == '-' || (first >= '0' && first <= '9') ? number()
                : word();
        depth--;
        return found;
    }

    private Map<String, Object> object() {
        Map<String, Object> found = new LinkedHashMap<>();
        if (taken('}')) {
            return found;
        }
        do {
            if (!taken('"')) {
                throw wrong("a key in quotation marks is expected");
            }
            String key = string();
            if (!taken(':')) {
                throw wrong("a colon is expected");
            }
            found.put(key, value());
        } while (taken(','));
        if (!taken('}')) {
            throw wrong("a comma or } is expected");
        }
        return found;
    }

    private List<Object> list() {
        List<Object> found = new ArrayList<>();
        if (taken(']')) {
            return found;
        }
        do {
            found.add(value());
        } while (taken(','));
        if (!taken(']')) {
            throw wrong("a comma or ] is expected");
        }
        return found;
    }

    private String string() {
        StringBuilder found = new StringBuilder();
        for (char c = next(); c != '"'; c = next()) {
            if (c < 0x20) {
                throw wrong("a control character in a string");
            }
            found.append(c == '\\' ? escaped() : c);
        }
        if (!Text.isWhole(found)) {
            throw wrong("half of a surrogate pair in a string");
        }
        return found.toString();
    }

    private char escaped() {
        char c = next();
        if (c == 'u') {
            int code = 0;
            for (int i = 0; i < 4; i++) {
                int digit = Character.digit(next(), 16);
                if (digit < 0) {
                    throw wrong("four hexadecimal digits are expected");
                }
                code = code << 4 | digit;
            }
            return (char) code;
        }
        int place = "\"\\/bfnrt".indexOf(c);
        if (place < 0) {
            throw wrong("an unknown escape");
        }
        return "\"\\/\b\f\n\r\t".charAt(place);
    }

    private Number number() {
        int start = at - 1;
        while (at < text.length() && "+-.eE0123456789".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        String digits = text.substring(start, at);
        if (!digits.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")) {
            throw wrong("'" + digits + "' is no number");
        }
        if (digits.length() < 19 && digits.matches("-?[0-9]+")) {
            return Long.valueOf(digits);
        }
        double value = Double.parseDouble(digits);
        if (Double.isInfinite(value)) {
            throw wrong("'" + digits + "' is too large");
        }
        return value;
    }

    private Object word() {
        at--;
        for (String word : new String[] {"true", "false", "null"}) {
            if (text.startsWith(word, at)) {
                at += word.length();
                return word.equals("null") ? null : Boolean.valueOf(word);
            }
        }
        throw wrong("a value is expected");
    }
}
