package dev.fourstep;

import java.io.File;

/** For tests: compares a package's graphs and pictures with its golden files, by a native engine. */
final class Whole {
    public static void main(String[] words) {
        NativeEngine engine = new NativeEngine(words[0], words[2]);
        Vectors.Report report = Vectors.compare(Package.open(new File(words[1])), engine);
        for (String failure : report.failures) {
            System.out.println(failure);
        }
        System.out.println(report.compared + " compared, open " + engine.open);
    }

    private Whole() {}
}
