/* For tests: one graph at a time through the C interface of the loop in C++ (fourstep.h). */
#include <fourstep.h>
#include <jni.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 64, ERROR_BYTES = 1024 };

static void *raised(JNIEnv *env, const char *text) {
    (*env)->ThrowNew(env, (*env)->FindClass(env, "java/io/IOException"), text);
    return NULL;
}

/* Texts of an array, to be let go of with `release`. */
static size_t texts(JNIEnv *env, jobjectArray from, const char **into) {
    jsize count = (*env)->GetArrayLength(env, from);
    for (jsize i = 0; i < count && i < MOST; i++) {
        jstring text = (*env)->GetObjectArrayElement(env, from, i);
        into[i] = (*env)->GetStringUTFChars(env, text, NULL);
    }
    return (size_t)count;
}

static void release(JNIEnv *env, jobjectArray from, const char **texts, size_t count) {
    for (size_t i = 0; i < count; i++) {
        jstring text = (*env)->GetObjectArrayElement(env, from, (jsize)i);
        (*env)->ReleaseStringUTFChars(env, text, texts[i]);
    }
}

JNIEXPORT jlong JNICALL Java_dev_fourstep_NativeEngine_open(
    JNIEnv *env, jclass self, jstring backend, jstring entry, jobjectArray names,
    jobjectArray values) {
    const char *keys[MOST], *settings[MOST];
    char error[ERROR_BYTES] = "";
    (void)self;
    size_t count = texts(env, names, keys);
    texts(env, values, settings);
    const char *path = (*env)->GetStringUTFChars(env, entry, NULL);
    const char *of = (*env)->GetStringUTFChars(env, backend, NULL);
    fourstep_graph *graph =
        fourstep_graph_open(of, path, keys, settings, count, error, sizeof error);
    (*env)->ReleaseStringUTFChars(env, backend, of);
    (*env)->ReleaseStringUTFChars(env, entry, path);
    release(env, names, keys, count);
    release(env, values, settings, count);
    if (graph == NULL) raised(env, error);
    return (jlong)(size_t)graph;
}

/* A float[] or int[] with a tensor's values. */
static jobject array_of(JNIEnv *env, const fourstep_tensor *tensor) {
    jsize count = 1;
    for (size_t i = 0; i < tensor->axes; i++) count *= (jsize)tensor->shape[i];
    if (tensor->dtype == 1) {
        jintArray ints = (*env)->NewIntArray(env, count);
        (*env)->SetIntArrayRegion(env, ints, 0, count, tensor->data);
        return ints;
    }
    jfloatArray floats = (*env)->NewFloatArray(env, count);
    (*env)->SetFloatArrayRegion(env, floats, 0, count, tensor->data);
    return floats;
}

/* Names, shapes (long[]) and values (float[] or int[]) of each output, one behind the other. */
static jobjectArray taken(JNIEnv *env, const fourstep_tensor *outputs, size_t count) {
    jclass any = (*env)->FindClass(env, "java/lang/Object");
    jobjectArray found = (*env)->NewObjectArray(env, (jsize)(3 * count), any, NULL);
    for (size_t i = 0; i < count; i++) {
        jlongArray shape = (*env)->NewLongArray(env, (jsize)outputs[i].axes);
        (*env)->SetLongArrayRegion(
            env, shape, 0, (jsize)outputs[i].axes, (const jlong *)outputs[i].shape);
        jsize place = (jsize)(3 * i);
        jstring name = (*env)->NewStringUTF(env, outputs[i].name);
        (*env)->SetObjectArrayElement(env, found, place, name);
        (*env)->SetObjectArrayElement(env, found, place + 1, shape);
        (*env)->SetObjectArrayElement(env, found, place + 2, array_of(env, &outputs[i]));
    }
    return found;
}

JNIEXPORT jobjectArray JNICALL Java_dev_fourstep_NativeEngine_run(
    JNIEnv *env, jclass self, jlong graph, jobjectArray names, jobjectArray shapes,
    jobjectArray values) {
    const char *ports[MOST];
    fourstep_tensor inputs[MOST];
    const fourstep_tensor *outputs = NULL;
    size_t output_count = 0;
    char error[ERROR_BYTES] = "";
    (void)self;
    size_t count = texts(env, names, ports);
    jclass ints = (*env)->FindClass(env, "[I");
    for (size_t i = 0; i < count; i++) {
        jlongArray shape = (*env)->GetObjectArrayElement(env, shapes, (jsize)i);
        jarray array = (*env)->GetObjectArrayElement(env, values, (jsize)i);
        size_t axes = (size_t)(*env)->GetArrayLength(env, shape);
        jsize length = (*env)->GetArrayLength(env, array);
        int64_t *sizes = malloc(axes * sizeof *sizes);
        void *data = malloc((size_t)length * 4);
        int is_int = (*env)->IsInstanceOf(env, array, ints);
        (*env)->GetLongArrayRegion(env, shape, 0, (jsize)axes, (jlong *)sizes);
        if (is_int)
            (*env)->GetIntArrayRegion(env, array, 0, length, data);
        else
            (*env)->GetFloatArrayRegion(env, array, 0, length, data);
        inputs[i] = (fourstep_tensor){ports[i], is_int, axes, sizes, data};
    }
    int status = fourstep_graph_run((fourstep_graph *)(size_t)graph, inputs, count, &outputs,
                                    &output_count, error, sizeof error);
    for (size_t i = 0; i < count; i++) {
        free((void *)inputs[i].shape);
        free(inputs[i].data);
    }
    release(env, names, ports, count);
    return status == 0 ? taken(env, outputs, output_count) : raised(env, error);
}

JNIEXPORT void JNICALL Java_dev_fourstep_NativeEngine_interrupt(
    JNIEnv *env, jclass self, jlong graph) {
    (void)env;
    (void)self;
    fourstep_graph_interrupt((fourstep_graph *)(size_t)graph);
}

JNIEXPORT void JNICALL Java_dev_fourstep_NativeEngine_close(
    JNIEnv *env, jclass self, jlong graph) {
    (void)env;
    (void)self;
    fourstep_graph_close((fourstep_graph *)(size_t)graph);
}
