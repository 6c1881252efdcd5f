// The choice of an instruction level, for one value of SYNCFLOW_INSTRUCTIONS: it is made once in a process.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "syncflow/layers.h"

namespace {

using namespace syncflow;
using namespace syncflow::test;

void expect_an_error_that_lists_the_levels(const std::string& wanted) {
    for (int time = 0; time < 2; ++time) {  // not only when it is first asked for
        try {
            instructions();
            fail("'" + wanted + "' is no level of this processor, and is taken for one");
        } catch (const std::invalid_argument& error) {
            const std::string message = error.what();
            expect(message.find("'" + wanted + "'") != std::string::npos, "the error names the level that was wanted");
            for (const std::string& level : instruction_levels()) {
                expect(message.find(level) != std::string::npos, "the error lists all levels of the processor");
            }
        }
    }
}

}  // namespace

int main() {
    const std::vector<std::string> levels = instruction_levels();
    expect(!levels.empty() && levels.front() == "baseline", "every processor has the baseline");
    expect(std::is_sorted(levels.begin(), levels.end()), "levels are listed from the lowest on");
    const char* const variable = std::getenv("SYNCFLOW_INSTRUCTIONS");
    const std::string wanted = variable == nullptr ? "" : variable;
    if (wanted.empty()) {
        expect(instructions() == levels.back(), "the best level runs where none is named");
    } else if (std::find(levels.begin(), levels.end(), wanted) != levels.end()) {
        expect(instructions() == wanted, "the level that is named runs");
    } else {
        expect_an_error_that_lists_the_levels(wanted);
    }
    std::printf("instruction level: all checks hold for '%s'\n", wanted.c_str());
}
