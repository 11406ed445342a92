package dev.fourstep;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A JSON value and its place, so that whatever is wrong with it is said with the place. */
final class Node {
    final Object value;
    final String where;

    Node(Object value, String where) {
        this.value = value;
        this.where = where;
    }

    IllegalArgumentException wrong(String what) {
        return new IllegalArgumentException(where.isEmpty() ? what : where + ": " + what);
    }

    /** The value of a key that has to be there. */
    Node get(String key) {
        if (!map().containsKey(key)) {
            throw wrong("has no field '" + key + "'");
        }
        return new Node(map().get(key), place(key));
    }

    /** The value of a key, or null where it is absent or null itself. */
    Node find(String key) {
        Object found = map().get(key);
        return found == null ? null : new Node(found, place(key));
    }

    private String place(String key) {
        return where.isEmpty() ? key : where + "." + key;
    }

    private Map<?, ?> map() {
        if (!(value instanceof Map)) {
            throw wrong("an object is expected");
        }
        return (Map<?, ?>) value;
    }

    Map<String, Node> entries() {
        Map<String, Node> found = new LinkedHashMap<>();
        for (Object key : map().keySet()) {
            found.put((String) key, new Node(map().get(key), place((String) key)));
        }
        return found;
    }

    List<Node> items() {
        if (!(value instanceof List)) {
            throw wrong("a list is expected");
        }
        List<Node> found = new ArrayList<>();
        for (Object item : (List<?>) value) {
            found.add(new Node(item, where + "[" + found.size() + "]"));
        }
        return found;
    }

    String text() {
        if (!(value instanceof String)) {
            throw wrong("text is expected");
        }
        return (String) value;
    }

    /** A text that is one of those known; another one would mean another picture. */
    String oneOf(String... known) {
        if (!Arrays.asList(known).contains(text())) {
            throw wrong("'" + value + "' is not known; one of " + Arrays.toString(known)
                    + " is expected");
        }
        return text();
    }

    /** A text that matches a pattern, as names, paths and digests do. */
    String matching(String pattern) {
        if (!text().matches(pattern) || text().length() > 400) {
            throw wrong("'" + value + "' has not the form that is expected");
        }
        return text();
    }

    boolean flag() {
        if (!(value instanceof Boolean)) {
            throw wrong("true or false is expected");
        }
        return (Boolean) value;
    }

    double number() {
        if (!(value instanceof Number)) {
            throw wrong("a number is expected");
        }
        return ((Number) value).doubleValue();
    }

    long whole(long least, long most) {
        double found = number();
        if (found != Math.rint(found) || found < least || found > most) {
            throw wrong(value + " is no whole number from " + least + " to " + most);
        }
        return ((Number) value).longValue();
    }

    int size(int most) {
        return (int) whole(1, most);
    }
}
