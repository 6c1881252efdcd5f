/* The C API from C: two requests in one batch, their progress, and a wav and a mp4 (or y4m) of each.
 *     c_api PACKAGE OUTPUT_FOLDER [STEPS] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "syncflow/syncflow.h"

static const char* const PROMPTS[] = {"a large red rubber ball bounces on a wooden floor", "a small blue glass ball falls on a stone floor"};

static int fail(const char* what) {
    fprintf(stderr, "%s: %s\n", what, syncflow_last_error());
    return EXIT_FAILURE;
}

/* Runs in the engine's thread; another value than 0 would stop the request. */
static int32_t print_progress(syncflow_request* request, const syncflow_progress* now, void* user_data) {
    (void)request;
    printf("clip %s: step %lld of %lld\n", (const char*)user_data, (long long)now->step, (long long)now->num_steps);
    return 0;
}

static int save(syncflow_request* request, const char* folder, const char* name, const char* suffix) {
    syncflow_clip clip = {.struct_size = sizeof clip};
    char path[4096];
    if (syncflow_request_clip(request, 0, &clip) != SYNCFLOW_OK) return fail("the clip");
    snprintf(path, sizeof path, "%s/%s%s", folder, name, suffix);
    if (syncflow_clip_write(&clip, path) != SYNCFLOW_OK) return fail("writing");
    printf("%s\n", path);
    return EXIT_SUCCESS;
}

int main(int count, char** arguments) {
    if (count < 3) {
        fprintf(stderr, "usage: c_api PACKAGE OUTPUT_FOLDER [STEPS]\n");
        return 2;
    }
    printf("syncflow %s (%s); %s\n", syncflow_version(), syncflow_commit(), syncflow_build_info());

    syncflow_engine_params engine_params;
    syncflow_engine_params_init(&engine_params, sizeof engine_params);
    engine_params.package = arguments[1];
    syncflow_engine* engine = NULL;
    if (syncflow_engine_open(&engine_params, &engine) != SYNCFLOW_OK) return fail("the engine");

    static char names[2][2] = {"0", "1"};
    syncflow_request* requests[2] = {NULL, NULL};
    int result = EXIT_SUCCESS;
    for (int i = 0; i < 2 && result == EXIT_SUCCESS; ++i) {
        syncflow_request_params params;
        syncflow_request_params_init(&params, sizeof params);
        params.prompt = PROMPTS[i];
        params.seed = 7;
        params.steps = count > 3 ? atoi(arguments[3]) : 0;
        params.on_progress = print_progress;
        params.user_data = names[i];
        if (syncflow_request_submit(engine, &params, &requests[i]) != SYNCFLOW_OK) result = fail("submitting");
    }
    const char* const video = strstr(syncflow_build_info(), ".mp4") != NULL ? ".mp4" : ".y4m";
    for (int i = 0; i < 2 && result == EXIT_SUCCESS; ++i) {
        if (syncflow_request_wait(requests[i], -1) != SYNCFLOW_OK) result = fail("generating");
        if (result == EXIT_SUCCESS) result = save(requests[i], arguments[2], names[i], ".wav");
        if (result == EXIT_SUCCESS) result = save(requests[i], arguments[2], names[i], video);
    }
    for (int i = 0; i < 2; ++i) {
        if (requests[i] != NULL) syncflow_request_close(requests[i]);
    }
    syncflow_engine_close(engine);
    return result;
}
