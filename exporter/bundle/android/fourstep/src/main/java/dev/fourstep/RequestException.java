package dev.fourstep;

/** A request that cannot be drawn with; {@link #field} names what of it. */
public final class RequestException extends FourstepException {
    private static final long serialVersionUID = 1L;

    /** As {@link Request} calls it: {@code prompt}, {@code seed}, {@code image} and so on. */
    public final String field;

    public RequestException(String field, String message) {
        super(field + ": " + message);
        this.field = field;
    }
}
