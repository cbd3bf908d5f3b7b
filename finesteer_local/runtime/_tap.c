/* The eval callback's filter, native.
 *
 * llama.cpp calls ggml_backend_sched_eval_callback for every node of the graph: about 940 times a token on a model of
 * 30 layers. A Python callback makes that cost 6 % of decode; this filter makes it cost nothing, because Python is
 * called only for the "l_out-N" nodes that somebody wants to read (llama.cpp: llm_graph_context::cb names them), and
 * vectors that are known before the pass are added to their rows here.
 *
 * No header of llama.cpp or Python is used, and no struct of theirs: the functions needed are handed over as pointers.
 * The Python twins of these functions are `Tap._eval` and `Tap._add` in tap.py; both must decide and round alike.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define FINESTEER_EXPORT __declspec(dllexport)
#else
#define FINESTEER_EXPORT __attribute__((visibility("default")))
#endif

enum { READ = 1, ADD = 2 }; /* why a layer is wanted */

/* `vector` is added to the rows [start, stop) of a layer's output. Mirrored by `_Addition` in tap.py. */
struct finesteer_addition {
    const float *vector; /* n_embd values */
    int32_t layer;
    int32_t start;
    int32_t stop;
};

/* Mirrored by `_Filter` in tap.py. */
struct finesteer_filter {
    const char *(*get_name)(const void *tensor);
    int64_t (*n_elements)(const void *tensor);
    size_t (*n_bytes)(const void *tensor);
    bool (*is_contiguous)(const void *tensor);
    void (*tensor_get)(const void *tensor, void *data, size_t offset, size_t size);
    void (*tensor_set)(void *tensor, const void *data, size_t offset, size_t size);
    bool (*on_layer)(void *tensor, int32_t layer);
    const uint8_t *wanted; /* n_layer values, READ and ADD */
    const struct finesteer_addition *additions;
    float *rows; /* room for the rows of the longest addition */
    int32_t n_layer;
    int32_t armed; /* 0: every node is refused at once */
    int32_t n_additions;
    int32_t n_added; /* counted up here: what was due and is not counted did not happen */
    int32_t n_embd;
};

/* N of "l_out-N", or -1 for every other name. */
static int32_t layer_of(const char *name) {
    if (strncmp(name, "l_out-", 6) != 0) {
        return -1;
    }
    int32_t layer = 0;
    const char *digit = name + 6;
    if (*digit == '\0') {
        return -1;
    }
    for (; *digit != '\0'; ++digit) {
        if (*digit < '0' || *digit > '9' || layer > 100000) {
            return -1;
        }
        layer = layer * 10 + (*digit - '0');
    }
    return layer;
}

static void add(struct finesteer_filter *filter, void *tensor, int32_t layer) {
    const int64_t n_embd = filter->n_embd, n_elements = filter->n_elements(tensor);
    if (filter->n_bytes(tensor) != 4 * (size_t)n_elements || !filter->is_contiguous(tensor)) {
        return;
    }
    for (int32_t i = 0; i < filter->n_additions; ++i) {
        const struct finesteer_addition *addition = &filter->additions[i];
        if (addition->layer != layer || addition->stop * n_embd > n_elements) {
            continue;
        }
        const int64_t n_rows = addition->stop - addition->start;
        const size_t offset = 4 * (size_t)(addition->start * n_embd), size = 4 * (size_t)(n_rows * n_embd);
        filter->tensor_get(tensor, filter->rows, offset, size);
        for (int64_t row = 0; row < n_rows; ++row) {
            for (int64_t j = 0; j < n_embd; ++j) {
                filter->rows[row * n_embd + j] += addition->vector[j];
            }
        }
        filter->tensor_set(tensor, filter->rows, offset, size);
        ++filter->n_added;
    }
}

/* ask: should the scheduler stop after this node? Otherwise: the node is computed; false ends the graph here. */
FINESTEER_EXPORT bool finesteer_tap_eval(void *tensor, bool ask, void *user_data) {
    struct finesteer_filter *filter = user_data;
    if (!filter->armed) {
        return !ask;
    }
    const int32_t layer = layer_of(filter->get_name(tensor));
    if (layer < 0 || layer >= filter->n_layer || !filter->wanted[layer]) {
        return !ask;
    }
    if (ask) {
        return true;
    }
    if (filter->wanted[layer] & ADD) {
        add(filter, tensor, layer); /* first: with llama.cpp's own control vector a reader sees the sum, too */
    }
    return !(filter->wanted[layer] & READ) || filter->on_layer(tensor, layer);
}
