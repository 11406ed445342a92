package dev.fourstep;

/** What strings of UTF-16 need so that they are sequences of code points. */
final class Text {
    private Text() {}

    /** Whether every surrogate has its other half, as in whatever can be written in UTF-8. */
    static boolean isWhole(CharSequence text) {
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (Character.isHighSurrogate(c)) {
                if (++i == text.length() || !Character.isLowSurrogate(text.charAt(i))) {
                    return false;
                }
            } else if (Character.isLowSurrogate(c)) {
                return false;
            }
        }
        return true;
    }

    /** A text in quotation marks, at most 60 characters of it, for a line of an error. */
    static String quoted(String text) {
        String shown = text.length() <= 60 ? text : text.substring(0, 60) + "...";
        return "'" + shown.replace("\n", "\\n") + "'";
    }
}
