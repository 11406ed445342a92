package android.widget;

/** For compiling alone: the signatures of the real class that are used. */
public class Button extends TextView {
    public Button(android.content.Context context) {
        super(context);
    }
}
