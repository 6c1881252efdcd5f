// Prints the first number of the noise of a seed, and the instruction level of the kernels.
#include <cstdio>

#include "syncflow/blocks.h"
#include "syncflow/layers.h"
#include "syncflow/noise.h"

int main() {
    float noise = 0;
    syncflow::fill_normal({.seed = 7, .stream = 1, .substream = 0}, 0, &noise, 1);
    std::printf("%.9g %s\n", static_cast<double>(noise), syncflow::instructions());
}
