/* The static program that runs a model's library where nothing is installed: a Linux kernel is all it needs.
 *
 *   run lib<model>.so weights.bin ...    command.h   by hand
 *   run serve ...                        server.h    the board's end of a session of `tc`
 */
#include "command.h"
#include "server.h"

__attribute__((noreturn, used)) void runner_main(long *stack) {
    int n = (int)stack[0];
    char **arguments = (char **)(stack + 1);
    crc_prepare();
    if (n > 1 && text_equal(arguments[1], "serve")) server_main(n - 2, arguments + 2);
    command_main(n - 1, arguments + 1);
}

/* The kernel starts here: the stack holds the number of arguments, then the arguments. */
__asm__(
    ".globl _start\n"
    ".type _start, @function\n"
    "_start:\n"
    CALL_RUNNER_MAIN
);
