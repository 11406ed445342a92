package android.widget;

/** For compiling alone: the signatures of the real class that are used. */
public class EditText extends TextView {
    public EditText(android.content.Context context) {
        super(context);
    }
}
