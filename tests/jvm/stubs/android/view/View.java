package android.view;

/** For compiling alone: the signatures of the real class that are used. */
public class View {
    public View(android.content.Context context) {}

    public interface OnClickListener {
        void onClick(View view);
    }

    public native void setOnClickListener(OnClickListener listener);

    public native void setFitsSystemWindows(boolean fits);

    public native boolean getFitsSystemWindows();
}
