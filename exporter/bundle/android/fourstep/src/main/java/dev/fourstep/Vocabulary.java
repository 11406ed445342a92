package dev.fourstep;

import java.util.Map;

/** What makes ids of a word: the model of a tokenizer's file. */
interface Vocabulary {
    /** The ids of its tokens. */
    Map<String, Integer> ids();

    /** Add the ids of a word that is not empty. */
    void encode(String word, IntList into);
}
