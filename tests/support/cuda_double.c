/* A CUDA driver that has the checkpoint functions alone, for workers of the fake engine.
 *
 * A worker's device memory is the number in the file that CORTEX_FAKE_MEMORY_FILE names. A checkpoint stops the worker
 * with SIGSTOP and sets the number to 0; a restore sets it back, and an unlock continues the worker with SIGCONT.
 *
 * Everything is in the folder CORTEX_TEST_CUDA: `state.PID`, `memory.PID`, `calls` (one line per call), `version`, and
 * the faults `fault.OPERATION` or `fault.OPERATION.PID`, each with one word:
 *   a number  return it as the CUresult
 *   fail      end half-way: the state is "failed"
 *   stay      report success, and leave the memory (checkpoint)
 *   wait      begin, and end only when the file `go` exists
 *   die       end the calling process
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };

static FILE *open_file(const char *mode, const char *name, int pid) {
    char path[4096];
    if (pid)
        snprintf(path, sizeof path, "%s/%s.%d", getenv("CORTEX_TEST_CUDA"), name, pid);
    else
        snprintf(path, sizeof path, "%s/%s", getenv("CORTEX_TEST_CUDA"), name);
    return fopen(path, mode);
}

static long number(const char *name, int pid, long otherwise) {
    FILE *file = open_file("r", name, pid);
    if (!file)
        return otherwise;
    if (fscanf(file, "%ld", &otherwise) != 1)
        otherwise = -1;
    fclose(file);
    return otherwise;
}

static void write_number(const char *name, int pid, long value) {
    FILE *file = open_file("w", name, pid);
    fprintf(file, "%ld\n", value);
    fclose(file);
}

/* The path of a worker's memory file; 0 for a process that is none. */
static int memory_path(int pid, char *path, size_t size) {
    char name[64], line[8192];
    size_t length = 0;
    int c;
    snprintf(name, sizeof name, "/proc/%d/environ", pid);
    FILE *file = fopen(name, "r");
    if (!file)
        return 0;
    while ((c = fgetc(file)) != EOF) {
        if (length < sizeof line - 1)
            line[length++] = (char)c;
        if (c != 0)
            continue;
        line[length] = 0;
        length = 0;
        if (strncmp(line, "CORTEX_FAKE_MEMORY_FILE=", 24) == 0) {
            snprintf(path, size, "%s", line + 24);
            fclose(file);
            return 1;
        }
    }
    fclose(file);
    return 0;
}

static long exchange_memory(int pid, long value) {
    char path[4096], other[4200];
    long before = 0;
    FILE *file;
    if (!memory_path(pid, path, sizeof path))
        return 0;
    if ((file = fopen(path, "r"))) {
        if (fscanf(file, "%ld", &before) != 1)
            before = 0;
        fclose(file);
    }
    snprintf(other, sizeof other, "%s.cuda", path);
    if ((file = fopen(other, "w"))) {
        fprintf(file, "%ld\n", value);
        fclose(file);
        rename(other, path);
    }
    return before;
}

/* Stop a process, and wait until it has stopped. */
static void stop(int pid) {
    char name[64], state = 0;
    snprintf(name, sizeof name, "/proc/%d/stat", pid);
    kill(pid, SIGSTOP);
    while (state != 'T' && state != 'Z') {
        FILE *file = fopen(name, "r");
        if (!file)
            return;
        if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
            state = 0;
        fclose(file);
        usleep(100);
    }
}

/* The scripted fault of an operation; an empty word: none. */
static void fault_of(const char *operation, int pid, char *word) {
    char name[64];
    snprintf(name, sizeof name, "fault.%s", operation);
    FILE *file = open_file("r", name, pid);
    if (!file)
        file = open_file("r", name, 0);
    word[0] = 0;
    if (!file)
        return;
    if (fscanf(file, "%31s", word) != 1)
        word[0] = 0;
    fclose(file);
}

static int begin(const char *operation, int pid, int needed, char *word) {
    char path[4096];
    FILE *calls = open_file("a", "calls", 0);
    fprintf(calls, "%s %d\n", operation, pid);
    fclose(calls);
    if (!memory_path(pid, path, sizeof path))
        return 1;
    fault_of(operation, pid, word);
    if (word[0] >= '0' && word[0] <= '9')
        return atoi(word);
    if (strcmp(word, "die") == 0)
        _exit(3);
    if (number("state", pid, RUNNING) != needed)
        return 401;
    if (strcmp(word, "wait") == 0) {
        FILE *go;
        while (!(go = open_file("r", "go", 0)))
            usleep(1000);
        fclose(go);
    }
    if (strcmp(word, "fail") == 0) {
        write_number("state", pid, FAILED);
        return 999;
    }
    return 0;
}

int cuInit(unsigned flags) { return flags ? 1 : (int)number("init", 0, 0); }

int cuDriverGetVersion(int *version) {
    *version = (int)number("version", 0, 13000);
    return 0;
}

int cuGetErrorName(int result, const char **name) {
    *name = result == 600 ? "CUDA_ERROR_NOT_READY" : result == 800 ? "CUDA_ERROR_NOT_PERMITTED" : 0;
    return *name ? 0 : 1;
}

/* As on a real device, 3 (not initialised) for a process that has loaded CUDA and uses no device memory. */
int cuCheckpointProcessGetState(int pid, int *state) {
    char path[4096];
    long memory = 0;
    FILE *file;
    if (!memory_path(pid, path, sizeof path))
        return 1;
    *state = (int)number("state", pid, -1);
    if (*state >= 0)
        return 0;
    if ((file = fopen(path, "r"))) {
        if (fscanf(file, "%ld", &memory) != 1)
            memory = 0;
        fclose(file);
    }
    *state = RUNNING;
    return memory ? 0 : 3;
}

int cuCheckpointProcessLock(int pid, void *arguments) {
    char word[32];
    int result = begin("lock", pid, RUNNING, word);
    (void)arguments;
    if (result == 0)
        write_number("state", pid, LOCKED);
    return result;
}

int cuCheckpointProcessCheckpoint(int pid, void *arguments) {
    char word[32];
    int result = begin("checkpoint", pid, LOCKED, word);
    (void)arguments;
    if (result != 0)
        return result;
    stop(pid);
    if (strcmp(word, "stay") != 0)
        write_number("memory", pid, exchange_memory(pid, 0));
    write_number("state", pid, CHECKPOINTED);
    return 0;
}

int cuCheckpointProcessRestore(int pid, void *arguments) {
    char word[32];
    int result = begin("restore", pid, CHECKPOINTED, word);
    (void)arguments;
    if (result != 0)
        return result;
    if (number("memory", pid, 0))
        exchange_memory(pid, number("memory", pid, 0));
    write_number("state", pid, LOCKED);
    return 0;
}

int cuCheckpointProcessUnlock(int pid, void *arguments) {
    char word[32];
    int result = begin("unlock", pid, LOCKED, word);
    (void)arguments;
    if (result != 0)
        return result;
    write_number("state", pid, RUNNING);
    kill(pid, SIGCONT);
    return 0;
}
