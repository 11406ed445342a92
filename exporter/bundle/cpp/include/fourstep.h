/** @file
 * Draws with packages of fourstep, from C and whatever calls C.
 *
 * Every function that can fail gets a place for one line of text that says what is wrong and what
 * to do; it may be NULL. Texts are UTF-8. A player draws one thing at a time; fourstep_cancel may
 * be called from any thread, also from the handler.
 */
#ifndef FOURSTEP_H
#define FOURSTEP_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(FOURSTEP_BUILDS)
#define FOURSTEP_API __declspec(dllexport)
#elif defined(_WIN32)
#define FOURSTEP_API __declspec(dllimport)
#elif defined(FOURSTEP_BUILDS) && defined(__GNUC__)
#define FOURSTEP_API __attribute__((visibility("default")))
#else
#define FOURSTEP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** What a function found. */
enum {
  FOURSTEP_OK = 0,
  FOURSTEP_CHECK_FAILED = 1, /**< a damaged package, numbers that are none */
  FOURSTEP_INPUT = 2,        /**< a path, a request or an option is at fault */
  FOURSTEP_STOPPED = 3       /**< by fourstep_cancel, or by the handler */
};

/** What an event is. */
enum { FOURSTEP_CONDITIONED = 1, FOURSTEP_STEP = 2, FOURSTEP_PICTURE = 3 };

/** What a tensor is of. */
enum { FOURSTEP_FLOAT32 = 0, FOURSTEP_INT32 = 1 };

/** A package that is open. */
typedef struct fourstep_player fourstep_player;

/** What a package draws. Texts are the player's. */
typedef struct fourstep_info {
  const char *name;
  const char *backend;
  const char *scheme;
  int32_t width_px;
  int32_t height_px;
  int32_t steps;
  int32_t takes_image;    /**< whether requests can start from a picture */
  int32_t takes_negative; /**< whether requests can name a negative prompt */
  const char *sizes; /**< all that the package has, such as "512x512 768x512", the first first */
} fourstep_info;

/** One picture to draw. Zeroes are the defaults. */
typedef struct fourstep_request {
  const char *prompt;
  uint64_t seed; /**< a negative one by its 64 bits */
  const uint8_t
      *image;      /**< to start from: 3 * width * height levels of the package's size, or NULL */
  double strength; /**< in (0, 1]: how much of the schedule an image goes through; 0: all */
  const char *negative; /**< what not to draw, or NULL */
} fourstep_request;

/** What has happened. All that it points to lasts until the handler returns. */
typedef struct fourstep_event {
  int32_t kind;
  int32_t request;     /**< of a step and a picture: which, counted from 0 */
  int32_t step;        /**< of a step: which is done, counted from 1 */
  int32_t steps;       /**< of a step: how many there are */
  int32_t prompts;     /**< of conditioned: how many were encoded */
  int32_t width_px;    /**< of a picture */
  int32_t height_px;   /**< of a picture */
  int32_t has_preview; /**< of a step: whether fourstep_preview shows it */
  double sigma;        /**< of a step */
  const float *latent; /**< of a step and a picture */
  int64_t latent_shape[4];
  const uint8_t *pixels; /**< of a picture: rows from the top, red, green, blue */
  const char *remarks;   /**< of conditioned: lines about prompts that are too long, or "" */
  const void *own;       /**< the library's */
} fourstep_event;

/** Gets each event. Anything but 0 ends the drawing. */
typedef int (*fourstep_handler)(const fourstep_event *event, void *user);

/** Opens a package: every file but the graphs is compared with its digest.
 * @param device such as CPU, GPU or NPU; NULL: the engine's default.
 * @param exact not 0: in float32 also where the package's settings round activations.
 * @param keeps_open not 0: graphs stay open for the next drawing, in the memory of all of them.
 * @return NULL when it cannot, and why in `error`. */
FOURSTEP_API fourstep_player *fourstep_open(const char *folder, const char *device, int32_t exact,
                                            int32_t keeps_open, char *error, size_t error_bytes);

/** Opens a package as fourstep_open does, to draw pictures of one of its sizes.
 * @param size such as 768x512; NULL: the package's first. */
FOURSTEP_API fourstep_player *fourstep_open_at(const char *folder, const char *size,
                                               const char *device, int32_t exact,
                                               int32_t keeps_open, char *error, size_t error_bytes);

/** Says what a package draws. */
FOURSTEP_API void fourstep_describe(const fourstep_player *player, fourstep_info *info);

/** Draws pictures; every graph is opened once for all of them.
 * @return FOURSTEP_OK, or what ended it, and why in `error`. */
FOURSTEP_API int32_t fourstep_draw(fourstep_player *player, const fourstep_request *requests,
                                   size_t count, fourstep_handler handler, void *user, char *error,
                                   size_t error_bytes);

/** Shows the latent of a step, from within the handler: 3 levels for each pixel into `pixels`.
 * @param pixels of `bytes` bytes, or NULL: to be told the size alone.
 * @return FOURSTEP_OK, or FOURSTEP_INPUT where it is too small or there is no preview. */
FOURSTEP_API int32_t fourstep_preview(const fourstep_event *event, uint8_t *pixels, size_t bytes,
                                      int32_t *width_px, int32_t *height_px, char *error,
                                      size_t error_bytes);

/** Ends the drawing that is going on, if there is one, also in the middle of a graph. */
FOURSTEP_API void fourstep_cancel(fourstep_player *player);

/** Closes a package. Nothing may be drawing with it. */
FOURSTEP_API void fourstep_free(fourstep_player *player);

/** The ids of a prompt by a tokenizer of the package, as an encoder takes them.
 * @param count how many `ids` has place for; gets how many there are. */
FOURSTEP_API int32_t fourstep_ids(const fourstep_player *player, const char *tokenizer,
                                  const char *prompt, int32_t *ids, size_t *count, char *error,
                                  size_t error_bytes);

/** What was compared with the package's golden files: how much, how much differs, and of what has a
 * tolerance the worst and what is allowed. */
typedef struct fourstep_comparison {
  const char *what;
  size_t compared;
  size_t differ;
  const char *worst;
} fourstep_comparison;

/** Gets each comparison. */
typedef void (*fourstep_compared)(const fourstep_comparison *comparison, void *user);

/** Runs the package's conformance vectors: ids, noise, steps, pixels, every graph, whole pictures.
 * A player that was opened `exact` is meant.
 * @return FOURSTEP_OK, FOURSTEP_CHECK_FAILED where something differs, or what ended it. */
FOURSTEP_API int32_t fourstep_compare(fourstep_player *player, fourstep_compared handler,
                                      void *user, char *error, size_t error_bytes);

/** A graph alone, for a loop in another language. */
typedef struct fourstep_graph fourstep_graph;

/** Values with a name and a shape. */
typedef struct fourstep_tensor {
  const char *name;
  int32_t dtype;
  size_t axes;
  const int64_t *shape;
  void *data;
} fourstep_tensor;

/** Opens a graph's file, whose digest is the caller's to check.
 * @param backend of its package.
 * @param names, values the `settings` that the manifest's `session` has for it. */
FOURSTEP_API fourstep_graph *fourstep_graph_open(const char *backend, const char *entry,
                                                 const char *const *names,
                                                 const char *const *values, size_t settings,
                                                 char *error, size_t error_bytes);

/** Runs a graph. What `outputs` gets is the graph's own, until its next run or its end. */
FOURSTEP_API int32_t fourstep_graph_run(fourstep_graph *graph, const fourstep_tensor *inputs,
                                        size_t count, const fourstep_tensor **outputs,
                                        size_t *output_count, char *error, size_t error_bytes);

/** Asks a run in another thread to end as soon as it can. */
FOURSTEP_API void fourstep_graph_interrupt(fourstep_graph *graph);

/** Closes a graph. */
FOURSTEP_API void fourstep_graph_close(fourstep_graph *graph);

#ifdef __cplusplus
}
#endif
#endif
