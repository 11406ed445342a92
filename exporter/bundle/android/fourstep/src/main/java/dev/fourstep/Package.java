package dev.fourstep;

import dev.fourstep.Manifest.FileEntry;
import dev.fourstep.Manifest.GraphEntry;
import dev.fourstep.Manifest.TokenizerEntry;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * A package on disk: opened, checked against its digests, played.
 *
 * <p>It may lie in several folders, as a store's asset packs put it; the first holds the manifest.
 */
public final class Package {
    private static final String MANIFEST = "manifest.json";
    private static final String DIGEST = "manifest.sha256";
    private static final int MOST_MANIFEST_BYTES = 1 << 26;
    private static final String AGAIN = "; copy or build the package again";

    /** Of the size that is drawn. */
    public final Manifest manifest;
    private final Map<String, Manifest> sizes;
    private final List<File> folders;
    /** Of files that were found whole: their size and time, which show a change. */
    private final Map<String, long[]> checked;

    private Package(Manifest manifest, Map<String, Manifest> sizes, List<File> folders,
            Map<String, long[]> checked) {
        this.manifest = manifest;
        this.sizes = sizes;
        this.folders = folders;
        this.checked = checked;
    }

    /**
     * Open a package; nothing of its manifest is believed before it has its digest.
     *
     * @throws RequestException where there is none
     * @throws PackageException when it is damaged or of another format
     */
    public static Package open(File... folders) {
        if (folders.length == 0 || !folders[0].isDirectory()) {
            throw new RequestException("folder", (folders.length == 0 ? "none" : folders[0])
                    + ": no such folder; name a package that fourstep build wrote");
        }
        File file = new File(folders[0], MANIFEST);
        if (!file.isFile()) {
            throw new RequestException("folder", folders[0] + ": not a package (no " + MANIFEST
                    + ")");
        }
        byte[] text = bytes(file, MOST_MANIFEST_BYTES);
        File digest = new File(folders[0], DIGEST);
        if (!digest.isFile()) {
            throw new PackageException(digest + ": is missing; copy the package again");
        }
        String line = hex(sha256().digest(text)) + "  " + MANIFEST + "\n";
        if (!Arrays.equals(line.getBytes(StandardCharsets.US_ASCII), bytes(digest, 1 << 10))) {
            throw new PackageException(file + ": damaged: it is not what " + DIGEST
                    + " says; copy the package again");
        }
        try {
            Map<String, Manifest> sizes = Manifest.parse(text);
            return new Package(sizes.values().iterator().next(), sizes,
                    Arrays.asList(folders.clone()), new ConcurrentHashMap<>());
        } catch (IllegalArgumentException error) {
            throw new PackageException(file + ": damaged, or of another format: "
                    + error.getMessage() + "; update this library, or build the package again",
                    error);
        }
    }

    /** The sizes of pictures that it draws, such as {@code 768x512}: the first unless told. */
    public List<String> sizes() {
        return new ArrayList<>(sizes.keySet());
    }

    /**
     * The package as if it were of this size alone.
     *
     * @param size one of {@link #sizes}
     */
    public Package at(String size) {
        if (!sizes.containsKey(size)) {
            throw new RequestException("size", "this package does not draw " + Text.quoted(size)
                    + "; its sizes: " + String.join(", ", sizes.keySet()));
        }
        return new Package(sizes.get(size), sizes, folders, checked);
    }

    /**
     * What draws with this package. Every file but the graphs is checked here, those when opened.
     *
     * @param keep graphs stay open for the next drawing: faster, in the memory of all of them
     */
    public Player player(Engine engine, boolean keep) {
        if (!engine.opens(manifest.backend)) {
            throw new PackageException(folders.get(0) + ": is for " + manifest.backend
                    + ", which " + engine.getClass().getSimpleName()
                    + " does not open; build the package for another backend");
        }
        for (FileEntry file : manifest.files.values()) {
            check(file);
        }
        return new Player(this, engine, tokenizers(), keep);
    }

    /** The tokenizer of each text encoder. */
    Map<String, Tokenizer> tokenizers() {
        Map<String, Tokenizer> found = new LinkedHashMap<>();
        for (Map.Entry<String, TokenizerEntry> entry : manifest.tokenizers.entrySet()) {
            TokenizerEntry tokenizer = entry.getValue();
            try {
                found.put(entry.getKey(), new Tokenizer(read(tokenizer.path), tokenizer));
            } catch (IllegalArgumentException error) {
                throw new PackageException(place(tokenizer.path) + ": not a tokenizer that is "
                        + "known: " + error.getMessage(), error);
            }
        }
        return found;
    }

    /** What is in a file beside the graphs, as its digest says. */
    byte[] read(String path) {
        FileEntry entry = manifest.files.get(path);
        File file = confined(path);
        byte[] content = sized(file, entry) > Integer.MAX_VALUE - 8
                ? new byte[0] : bytes(file, Integer.MAX_VALUE - 8);
        compare(file, entry, content.length, hex(sha256().digest(content)));
        return content;
    }

    /** Open a graph, or a part of one, whose files are what their digests say. */
    Graph open(String name, Engine engine) {
        GraphEntry graph = manifest.graphs.get(name);
        for (FileEntry file : graph.files) {
            check(file);
        }
        File entry = confined(graph.entry);
        Graph opened;
        try {
            opened = engine.open(entry, graph);
        } catch (Exception error) {
            throw new PackageException(entry + ": " + engine.getClass().getSimpleName()
                    + " cannot open it: " + error.getMessage(), error);
        }
        for (FileEntry file : graph.files) {
            File now = confined(file.path);
            if (!Arrays.equals(checked.get(file.path), state(now))) {
                opened.close();
                throw new PackageException(now + ": changed while it was being read; open the "
                        + "package again");
            }
        }
        return opened;
    }

    /** Compare a file with its size and digest, once for as long as it stays what it was. */
    private void check(FileEntry entry) {
        File file = confined(entry.path);
        sized(file, entry);
        long[] state = state(file);
        if (Arrays.equals(checked.get(entry.path), state)) {
            return;
        }
        MessageDigest digest = sha256();
        long count = 0;
        try (InputStream stream = new FileInputStream(file)) {
            byte[] part = new byte[1 << 20];
            for (int read = stream.read(part); read >= 0; read = stream.read(part)) {
                digest.update(part, 0, read);
                count += read;
            }
        } catch (IOException error) {
            throw unreadable(file, error);
        }
        compare(file, entry, count, hex(digest.digest()));
        checked.put(entry.path, state);
    }

    private static long sized(File file, FileEntry entry) {
        if (!file.isFile()) {
            throw new PackageException(file + ": cannot be read: no such file" + AGAIN);
        }
        if (file.length() != entry.bytes) {
            compare(file, entry, file.length(), "");
        }
        return file.length();
    }

    private static void compare(File file, FileEntry entry, long bytes, String sha256) {
        if (bytes != entry.bytes) {
            throw new PackageException(file + ": damaged: " + bytes
                    + " bytes where the manifest says " + entry.bytes + AGAIN);
        }
        if (!sha256.equals(entry.sha256)) {
            throw new PackageException(file + ": damaged: SHA-256 differs" + AGAIN);
        }
    }

    private static long[] state(File file) {
        return new long[] {file.length(), file.lastModified()};
    }

    /** Where a path of the manifest lies: in the first folder that has it. */
    private File place(String path) {
        for (File folder : folders) {
            File file = new File(folder, path);
            if (file.exists()) {
                return file;
            }
        }
        return new File(folders.get(0), path);
    }

    /** The same; raises PackageException when a link leaves the package, or a hub's own files. */
    private File confined(String path) {
        File file = place(path);
        try {
            String real = file.getCanonicalPath();
            for (File folder : folders) {
                File home = folder.getCanonicalFile();
                if (real.startsWith(home.getPath() + File.separator)) {
                    return file;
                }
                for (File at = home; at != null; at = at.getParentFile()) {
                    File parent = at.getParentFile();
                    boolean isSnapshot = parent != null && parent.getName().equals("snapshots")
                            && parent.getParentFile() != null
                            && parent.getParentFile().getName().startsWith("models--");
                    if (isSnapshot && real.startsWith(new File(parent.getParentFile(), "blobs")
                            + File.separator)) {
                        return file;
                    }
                }
            }
            throw new PackageException(file + ": a link that leaves the package, to " + real
                    + "; copy the package with its files");
        } catch (IOException error) {
            throw unreadable(file, error);
        }
    }

    private static byte[] bytes(File file, int most) {
        if (file.length() > most) {
            throw new PackageException(file + ": damaged: more than " + most + " bytes" + AGAIN);
        }
        byte[] content = new byte[(int) file.length()];
        try (InputStream stream = new FileInputStream(file)) {
            int count = 0;
            while (count < content.length) {
                int read = stream.read(content, count, content.length - count);
                if (read < 0) {
                    throw new IOException("it ends too early");
                }
                count += read;
            }
            return content;
        } catch (IOException error) {
            throw unreadable(file, error);
        }
    }

    private static PackageException unreadable(File file, IOException error) {
        return new PackageException(file + ": cannot be read: " + error.getMessage()
                + "; copy the package again", error);
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException("every Java has SHA-256", error);
        }
    }

    private static String hex(byte[] bytes) {
        StringBuilder found = new StringBuilder();
        for (byte part : bytes) {
            found.append(Character.forDigit(part >> 4 & 15, 16));
            found.append(Character.forDigit(part & 15, 16));
        }
        return found.toString();
    }
}
