package dev.fourstep;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The sizes of pictures that a package draws, and its manifest as that of one of them alone.
 *
 * <p>A manifest is that of its first size; what further sizes have of their own stands beside it.
 */
final class Sizes {
    private static final int MOST = 31; // beside the first
    private static final int MOST_PX = 16384;
    private static final String FILES = "files";

    private final Node whole;
    private final Map<String, Node> listed = new HashMap<>(); // files by path
    private final Set<String> left = new HashSet<>(); // those that only further sizes have

    private Sizes(Node whole) {
        this.whole = whole;
        for (Node file : whole.get(FILES).items()) {
            listed.put(file.get("path").text(), file);
            left.add(file.get("path").text());
        }
        Set<String> named = new HashSet<>();
        for (Node size : sizes()) {
            for (Node graph : size.get("graphs").items()) {
                for (Node path : graph.get(FILES).items()) {
                    named.add(path.matching(Manifest.PATH));
                }
            }
        }
        left.retainAll(named);
        for (Node graph : whole.get("graphs").items()) {
            for (Node file : graph.get(FILES).items()) {
                listed.put(file.get("path").text(), file);
            }
        }
    }

    /**
     * The manifest of each size alone, by the size as it is written: {@code 768x512}; the first one
     * first.
     *
     * @throws IllegalArgumentException naming the field that is wrong, or contradicts another
     */
    static Map<String, Manifest> of(Node whole) {
        Sizes all = new Sizes(whole);
        List<Node> sizes = all.sizes();
        if (sizes.size() > MOST) {
            throw whole.wrong("sizes: " + sizes.size() + " of them; at most " + MOST);
        }
        Map<String, Manifest> found = new LinkedHashMap<>();
        Node picture = whole.get("picture");
        found.put(written(picture), Manifest.of(new Node(all.alone(), "")));
        for (Node size : sizes) {
            try {
                Manifest manifest = Manifest.of(new Node(all.at(size), ""));
                if (found.put(written(size), manifest) != null) {
                    throw new IllegalArgumentException(written(size) + " is there already");
                }
            } catch (IllegalArgumentException error) {
                String message = error.getMessage();
                throw new IllegalArgumentException(message.startsWith(size.where)
                        ? message : size.where + ": " + message, error);
            }
        }
        return found;
    }

    private List<Node> sizes() {
        return whole.find("sizes") == null ? new ArrayList<Node>() : whole.get("sizes").items();
    }

    private static String written(Node of) {
        return of.get("width_px").size(MOST_PX) + "x" + of.get("height_px").size(MOST_PX);
    }

    /** Of the first size, without what only others have. */
    private Map<String, Object> alone() {
        Map<String, Object> found = plain(whole);
        List<Object> files = new ArrayList<>();
        for (Node file : whole.get(FILES).items()) {
            if (!left.contains(file.get("path").text())) {
                files.add(file.value);
            }
        }
        found.put(FILES, files);
        return found;
    }

    /** Of a further size: its own graphs in place of those that they stand in for. */
    private Map<String, Object> at(Node size) {
        Map<String, Node> own = new LinkedHashMap<>();
        for (Node graph : size.get("graphs").items()) {
            if (own.put(graph.get("name").text(), graph) != null) {
                throw graph.wrong("'" + graph.get("name").text() + "' is there twice");
            }
        }
        List<Object> graphs = new ArrayList<>();
        for (Node graph : whole.get("graphs").items()) {
            Node other = own.remove(graph.get("name").text());
            graphs.add(other == null ? graph.value : standingIn(graph, other));
        }
        if (!own.isEmpty()) {
            throw size.wrong("there is no graph '" + own.keySet().iterator().next() + "'");
        }
        Map<String, Object> found = alone();
        found.put("graphs", graphs);
        Map<String, Object> picture = plain(whole.get("picture"));
        picture.put("width_px", size.get("width_px").value);
        picture.put("height_px", size.get("height_px").value);
        found.put("picture", picture);
        found.put("golden", only("pictures", size));
        found.put("device", only("predicted_peak_bytes", size));
        return found;
    }

    private Map<String, Object> standingIn(Node graph, Node other) {
        Set<String> able = new HashSet<>(left);
        for (Node file : graph.get(FILES).items()) {
            able.add(file.get("path").text());
        }
        Map<String, Object> found = plain(graph);
        found.keySet().removeIf("session"::equals);
        found.putAll(plain(other));
        List<Object> files = new ArrayList<>();
        for (Node path : other.get(FILES).items()) {
            if (!able.contains(path.text())) {
                throw path.wrong("'" + path.text() + "' is no file of '"
                        + graph.get("name").text() + "'");
            }
            files.add(listed.get(path.text()).value);
        }
        found.put(FILES, files);
        return found;
    }

    private static Map<String, Object> only(String key, Node of) {
        Map<String, Object> found = new LinkedHashMap<>();
        if (of.find(key) != null) {
            found.put(key, of.get(key).value);
        }
        return found;
    }

    private static Map<String, Object> plain(Node node) {
        Map<String, Object> found = new LinkedHashMap<>();
        for (Map.Entry<String, Node> entry : node.entries().entrySet()) {
            found.put(entry.getKey(), entry.getValue().value);
        }
        return found;
    }
}
