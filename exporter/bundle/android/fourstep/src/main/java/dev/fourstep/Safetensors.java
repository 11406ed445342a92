package dev.fourstep;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Reads a safetensors file: float32, int32 and uint8, checked before memory is taken. */
final class Safetensors {
    private final ByteBuffer data;
    private final Map<String, Node> entries = new LinkedHashMap<>();
    private Safetensors others; // what has the tensors that are not here, or null

    /** Raises IllegalArgumentException for bytes that are no such file. */
    Safetensors(byte[] content) {
        ByteBuffer whole = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN);
        long header = content.length < 8 ? -1 : whole.getLong(0);
        if (header < 0 || header > content.length - 8) {
            throw new IllegalArgumentException("not safetensors: its header is cut off");
        }
        int start = 8 + (int) header;
        whole.position(start);
        data = whole.slice().order(ByteOrder.LITTLE_ENDIAN);
        Node root = new Node(Json.parse(Arrays.copyOfRange(content, 8, start)), "");
        for (Map.Entry<String, Node> entry : root.entries().entrySet()) {
            if (!entry.getKey().equals("__metadata__")) {
                entries.put(entry.getKey(), entry.getValue());
            }
        }
    }

    /**
     * The same with tensors that are not here: as another one of this file, else as in another file.
     *
     * @param same names of others by what they stand for too
     * @param like where all else is
     */
    Safetensors with(Map<String, String> same, Safetensors like) {
        for (Map.Entry<String, String> copy : same.entrySet()) {
            entries.put(copy.getKey(), entry(copy.getValue()));
        }
        others = like;
        return this;
    }

    Iterable<String> names() {
        return entries.keySet();
    }

    boolean has(String name) {
        return entries.containsKey(name) || (others != null && others.has(name));
    }

    private boolean isElsewhere(String name) {
        return others != null && !entries.containsKey(name);
    }

    int[] shape(String name) {
        if (isElsewhere(name)) {
            return others.shape(name);
        }
        List<Node> sizes = entry(name).get("shape").items();
        int[] shape = new int[sizes.size()];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = (int) sizes.get(i).whole(0, Integer.MAX_VALUE);
        }
        return shape;
    }

    float[] floats(String name) {
        ByteBuffer part = part(name, "F32", 4);
        float[] found = new float[part.remaining() / 4];
        part.asFloatBuffer().get(found);
        return found;
    }

    int[] ints(String name) {
        ByteBuffer part = part(name, "I32", 4);
        int[] found = new int[part.remaining() / 4];
        part.asIntBuffer().get(found);
        return found;
    }

    byte[] bytes(String name) {
        ByteBuffer part = part(name, "U8", 1);
        byte[] found = new byte[part.remaining()];
        part.get(found);
        return found;
    }

    Tensor tensor(String name) {
        if (isElsewhere(name)) {
            return others.tensor(name);
        }
        return entry(name).get("dtype").text().equals("I32")
                ? Tensor.of(ints(name), shape(name)) : Tensor.of(floats(name), shape(name));
    }

    private Node entry(String name) {
        if (!entries.containsKey(name)) {
            throw new IllegalArgumentException("tensor '" + name + "' is missing");
        }
        return entries.get(name);
    }

    private ByteBuffer part(String name, String dtype, int width) {
        if (isElsewhere(name)) {
            return others.part(name, dtype, width);
        }
        Node entry = entry(name);
        entry.get("dtype").oneOf(dtype);
        List<Node> offsets = entry.get("data_offsets").items();
        if (offsets.size() != 2) {
            throw entry.get("data_offsets").wrong("two numbers are expected");
        }
        int start = (int) offsets.get(0).whole(0, data.capacity());
        int end = (int) offsets.get(1).whole(start, data.capacity());
        long bytes = width;
        for (int size : shape(name)) {
            bytes = Math.min(bytes * size, Integer.MAX_VALUE);
        }
        if (bytes != end - start) {
            throw entry.wrong("its shape needs " + bytes + " bytes, and there are "
                    + (end - start));
        }
        ByteBuffer part = data.duplicate().order(ByteOrder.LITTLE_ENDIAN);
        part.position(start).limit(end);
        return part;
    }
}
