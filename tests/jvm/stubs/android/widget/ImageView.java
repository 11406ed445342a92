package android.widget;

/** For compiling alone: the signatures of the real class that are used. */
public class ImageView extends android.view.View {
    public ImageView(android.content.Context context) {
        super(context);
    }

    public native void setAdjustViewBounds(boolean adjusts);

    public native boolean getAdjustViewBounds();

    public native void setImageBitmap(android.graphics.Bitmap bitmap);
}
