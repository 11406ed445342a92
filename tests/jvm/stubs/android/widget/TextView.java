package android.widget;

/** For compiling alone: the signatures of the real class that are used. */
public class TextView extends android.view.View {
    public TextView(android.content.Context context) {
        super(context);
    }

    public native CharSequence getText();

    public final native void setText(CharSequence text);

    public final native void setText(int id);
}
