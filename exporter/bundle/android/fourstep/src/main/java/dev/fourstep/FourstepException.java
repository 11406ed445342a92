package dev.fourstep;

/** What this library says in one line: what is wrong, where, and what to do next. */
public class FourstepException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    FourstepException(String message) {
        super(message);
    }

    FourstepException(String message, Throwable cause) {
        super(message, cause);
    }
}
