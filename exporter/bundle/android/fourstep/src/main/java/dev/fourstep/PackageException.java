package dev.fourstep;

/** A package is damaged, of another format, or a graph of it gave no numbers. */
public final class PackageException extends FourstepException {
    private static final long serialVersionUID = 1L;

    public PackageException(String message) {
        super(message);
    }

    public PackageException(String message, Throwable cause) {
        super(message, cause);
    }
}
