/* The header in C, and the layout that programs were compiled with: a change here breaks them. */
#include <stddef.h>
#include <stdio.h>

#include "syncflow/syncflow.h"

#define LAYOUT(type, size, last, offset) \
    _Static_assert(sizeof(void*) != 8 || sizeof(type) == (size), #type " has another size"); \
    _Static_assert(sizeof(void*) != 8 || offsetof(type, last) == (offset), #type " has another layout")

LAYOUT(syncflow_clip, 112, latent_width, 104);
LAYOUT(syncflow_media_params, 40, seconds, 32);
LAYOUT(syncflow_engine_params, 48, skip_checksums, 44);
LAYOUT(syncflow_model_info, 344, weight_bytes, 336);
LAYOUT(syncflow_engine_stats, 64, steps, 56);
LAYOUT(syncflow_progress, 40, elapsed, 32);
LAYOUT(syncflow_preview, 136, width, 128);
LAYOUT(syncflow_request_params, 248, user_data, 240);

int main(void) {
    syncflow_request_params params;
    if (syncflow_request_params_init(&params, sizeof params) != SYNCFLOW_OK) return 1;
    if (params.struct_size != sizeof params || params.guidance != SYNCFLOW_DEFAULT || params.prompt != NULL) return 1;
    if (syncflow_engine_close(NULL) != SYNCFLOW_INVALID_HANDLE || syncflow_last_error()[0] == 0) return 1;
    printf("header: %s (%s), %s\n", syncflow_version(), syncflow_commit(), syncflow_build_info());
    return 0;
}
