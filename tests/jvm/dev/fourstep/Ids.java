package dev.fourstep;

import dev.fourstep.Manifest.TokenizerEntry;
import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Arrays;

/** For tests: ids of prompts that come as lines of hexadecimal UTF-8, by a tokenizer.json. */
final class Ids {
    private static final String ENTRY = "{\"path\": \"a\", \"tokens\": 77, \"pad_id\": 0}";

    public static void main(String[] files) throws Exception {
        Node node = new Node(Json.parse(ENTRY.getBytes(StandardCharsets.UTF_8)), "");
        byte[] content = Files.readAllBytes(new File(files[0]).toPath());
        Tokenizer tokenizer;
        try {
            tokenizer = new Tokenizer(content, new TokenizerEntry(node));
        } catch (IllegalArgumentException error) {
            System.out.println("refused: " + error.getMessage());
            return;
        }
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        StringBuilder out = new StringBuilder();
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            byte[] bytes = line.isEmpty() ? new byte[0] : new BigInteger("01" + line, 16).toByteArray();
            String prompt = new String(bytes, Math.min(1, bytes.length),
                    Math.max(0, bytes.length - 1), StandardCharsets.UTF_8);
            out.append(Arrays.toString(tokenizer.ids(prompt))).append('\n');
        }
        new PrintStream(System.out, true, "UTF-8").print(out);
    }

    private Ids() {}
}
