package android.content;

/** For compiling alone: the signatures of the real class that are used. */
public class Context {
    public static final String ACTIVITY_SERVICE = "activity";

    public native java.io.File getExternalFilesDir(String type);

    public native Object getSystemService(String name);

    public final native String getString(int id, Object... parts);
}
