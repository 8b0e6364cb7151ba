/* A hook tool: sends what it was called with to the server on $HOOKTOOLS_SOCKET, and says what that
 * answers.
 *
 * On the line, each field has its length before it, in four bytes (`hooktools.py` reads them).
 */
#include <arpa/inet.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

extern char **environ;

static void send_field(FILE *line, const char *bytes, size_t length)
{
    uint32_t size = htonl(length);
    fwrite(&size, sizeof size, 1, line);
    fwrite(bytes, 1, length, line);
}

static void send_text(FILE *line, const char *text) { send_field(line, text, strlen(text)); }

static void send_number(FILE *line, long number)
{
    char text[24];
    snprintf(text, sizeof text, "%ld", number);
    send_text(line, text);
}

/* What was piped in, where an argument says that it is to be read: `-`, or `--file=-`. */
static void send_input(FILE *line, char **words)
{
    char *bytes = NULL, piece[4096];
    size_t length = 0, more;
    FILE *given = open_memstream(&bytes, &length);
    int asked = 0;
    for (; *words; words++) {
        size_t end = strlen(*words);
        asked |= !strcmp(*words, "-") || (end > 1 && !strcmp(*words + end - 2, "=-"));
    }
    while (asked && (more = fread(piece, 1, sizeof piece, stdin)))
        fwrite(piece, 1, more, given);
    fclose(given);
    send_field(line, bytes, length);
}

static void pass_on(FILE *line, FILE *to)
{
    uint32_t size;
    if (fread(&size, sizeof size, 1, line) != 1)
        errx(70, "no answer");
    for (size = ntohl(size); size; size--)
        putc(getc(line), to);
}

int main(int count, char **words)
{
    const char *name = strrchr(words[0], '/') ? strrchr(words[0], '/') + 1 : words[0];
    const char *path = getenv("HOOKTOOLS_SOCKET");
    struct sockaddr_un server = {.sun_family = AF_UNIX};
    char folder[4096];
    int end = socket(AF_UNIX, SOCK_STREAM, 0), status;
    if (!path)
        errx(70, "HOOKTOOLS_SOCKET is not set");
    strncpy(server.sun_path, path, sizeof server.sun_path - 1);
    if (end < 0 || connect(end, (struct sockaddr *)&server, sizeof server))
        err(70, "%s", path);
    FILE *line = fdopen(dup(end), "w");
    send_text(line, name);
    send_number(line, getppid());
    send_text(line, getcwd(folder, sizeof folder) ? folder : "/");
    send_input(line, words + 1);
    send_number(line, count - 1);
    for (int at = 1; at < count; at++)
        send_text(line, words[at]);
    for (char **each = environ; *each; each++)
        if (!strncmp(*each, "JUJU_", 5) || !strncmp(*each, "HOOKTOOLS_", 10))
            send_text(line, *each);
    fclose(line);
    shutdown(end, SHUT_WR);
    line = fdopen(end, "r");
    if ((status = getc(line)) == EOF)
        errx(70, "no answer");
    pass_on(line, stdout);
    pass_on(line, stderr);
    return status;
}
