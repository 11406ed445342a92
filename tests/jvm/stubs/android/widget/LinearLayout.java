package android.widget;

/** For compiling alone: the signatures of the real class that are used. */
public class LinearLayout extends android.view.View {
    public static final int VERTICAL = 1;

    public LinearLayout(android.content.Context context) {
        super(context);
    }

    public native void setOrientation(int orientation);

    public native int getOrientation();

    public native void addView(android.view.View child);
}
