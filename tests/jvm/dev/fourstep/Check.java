package dev.fourstep;

import dev.fourstep.Manifest.GraphEntry;
import java.io.File;

/** For tests: opens a package and checks what has to be before anything runs. */
final class Check {
    public static void main(String[] folders) {
        Engine any = new Engine() {
            @Override
            public boolean opens(String backend) {
                return true;
            }

            @Override
            public Graph open(File entry, GraphEntry graph) {
                throw new UnsupportedOperationException();
            }
        };
        try {
            Package.open(new File(folders[0])).player(any, false).close();
            System.out.println("whole");
        } catch (FourstepException error) {
            System.out.println(error.getMessage());
        }
    }

    private Check() {}
}
