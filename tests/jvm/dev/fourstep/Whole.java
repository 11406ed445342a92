package dev.fourstep;

import java.io.File;

/** For tests: compares graphs and pictures with golden files, by an engine that {@link Counted} knows. */
final class Whole {
    public static void main(String[] words) throws Exception {
        Counted engine = Counted.of(words[0], words[2]);
        Vectors.Report report = Vectors.compare(Package.open(new File(words[1])), engine);
        for (String failure : report.failures) {
            System.out.println(failure);
        }
        System.out.println(report.compared + " compared, open " + engine.open);
    }

    private Whole() {}
}
