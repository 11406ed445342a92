package android.app;

/** For compiling alone: the signatures of the real class that are used. */
public class Activity extends android.content.Context {
    protected native void onCreate(android.os.Bundle state);

    protected native void onDestroy();

    public native void setContentView(android.view.View view);

    public final native void runOnUiThread(Runnable action);
}
