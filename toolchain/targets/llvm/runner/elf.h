/* Loads a model's shared library, which imports nothing: map its segments, apply its relocations, find functions by name.
 *
 * The code lies in anonymous memory, so a folder mounted noexec is fine. Only what our linker writes is understood (ELF64 of
 * this machine; relocations RELATIVE and those to the library's own symbols); anything else is refused with a reason.
 * Source: System V ABI, chapters 4 and 5; the GNU hash table as binutils writes it. */
#ifndef TC_ELF_H
#define TC_ELF_H
#include "linux.h"

typedef struct {
    unsigned char identity[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, program_headers, section_headers;
    uint32_t flags;
    uint16_t header_bytes, program_bytes, n_program, section_bytes, n_section, names;
} elf_header;
typedef struct {
    uint32_t type, flags;
    uint64_t offset, address, physical, file_bytes, memory_bytes, alignment;
} elf_segment;
typedef struct {
    int64_t tag;
    uint64_t value;
} elf_dynamic;
typedef struct {
    uint32_t name;
    unsigned char info, other;
    uint16_t section;
    uint64_t value, size;
} elf_symbol;
typedef struct {
    uint64_t offset, info;
    int64_t addend;
} elf_relocation;

enum { SEGMENT_LOAD = 1, SEGMENT_DYNAMIC = 2, MOST_PAGE = 1 << 16 };
enum { DYNAMIC_NEEDED = 1, DYNAMIC_JUMP_BYTES = 2, DYNAMIC_STRINGS = 5, DYNAMIC_SYMBOLS = 6, DYNAMIC_RELA = 7,
       DYNAMIC_RELA_BYTES = 8, DYNAMIC_NAME = 14, DYNAMIC_REL = 17, DYNAMIC_JUMP = 23, DYNAMIC_RELR = 36,
       DYNAMIC_GNU_HASH = 0x6ffffef5 };

typedef struct {
    char *base;
    size_t bytes;
    const char *strings, *name; /* name: "model" of libmodel.so, not terminated; name_length */
    size_t name_length;
    const elf_symbol *symbols;
    const uint32_t *hash;
} library;

static inline void *library_find(const library *l, const char *function) {
    uint32_t wanted = 5381;
    for (size_t i = 0; i < l->name_length; i++) wanted = wanted * 33 + (unsigned char)l->name[i];
    wanted = wanted * 33 + '_';
    for (const char *c = function; *c; c++) wanted = wanted * 33 + (unsigned char)*c;
    if (!l->hash) return NULL;
    uint32_t n_buckets = l->hash[0], first = l->hash[1], n_bloom = l->hash[2];
    const uint32_t *buckets = l->hash + 4 + 2 * n_bloom, *chain = buckets + n_buckets;
    for (uint32_t i = n_buckets ? buckets[wanted % n_buckets] : 0; i >= first && i; i++) {
        const char *name = l->strings + l->symbols[i].name;
        size_t k = 0;
        if ((chain[i - first] | 1) == (wanted | 1)) {
            while (k < l->name_length && name[k] == l->name[k]) k++;
            if (k == l->name_length && name[k] == '_' && text_equal(name + k + 1, function) && l->symbols[i].section)
                return l->base + l->symbols[i].value;
        }
        if (chain[i - first] & 1) break;
    }
    return NULL;
}

static inline const char *relocate(library *l, const elf_relocation *r, size_t bytes) {
    for (const elf_relocation *end = r + bytes / sizeof *r; r < end; r++) {
        uint32_t kind = (uint32_t)r->info;
        const elf_symbol *symbol = l->symbols + (r->info >> 32);
        if (r->offset > l->bytes - 8) return "a relocation outside the library";
        uint64_t value = (uint64_t)l->base + (uint64_t)r->addend;
        if (kind == RELOCATE_ABSOLUTE || kind == RELOCATE_ENTRY || kind == RELOCATE_JUMP) {
            if (!symbol->section) return "the library needs a symbol of another library";
            value += symbol->value;
        } else if (kind != RELOCATE_BASE) {
            return "a relocation of a kind that models do not have";
        }
        memcpy(l->base + r->offset, &value, sizeof value);
    }
    return NULL;
}

static inline const char *read_dynamic(library *l, const elf_dynamic *d) {
    const elf_relocation *plain = NULL, *jumps = NULL;
    size_t plain_bytes = 0, jump_bytes = 0, name = 0;
    for (; d->tag; d++) {
        void *at = l->base + d->value;
        if (d->tag == DYNAMIC_STRINGS) l->strings = at;
        else if (d->tag == DYNAMIC_SYMBOLS) l->symbols = at;
        else if (d->tag == DYNAMIC_GNU_HASH) l->hash = at;
        else if (d->tag == DYNAMIC_RELA) plain = at;
        else if (d->tag == DYNAMIC_RELA_BYTES) plain_bytes = d->value;
        else if (d->tag == DYNAMIC_JUMP) jumps = at;
        else if (d->tag == DYNAMIC_JUMP_BYTES) jump_bytes = d->value;
        else if (d->tag == DYNAMIC_NAME) name = d->value;
        else if (d->tag == DYNAMIC_NEEDED) return "it needs other libraries: it is no model's library";
        else if (d->tag == DYNAMIC_REL || d->tag == DYNAMIC_RELR) return "relocations of a form that models do not have";
    }
    if (!l->strings || !l->symbols || !l->hash) return "it has no symbol table";
    const char *file = after_prefix(l->strings + name, "lib");
    size_t n = file ? text_length(file) : 0;
    if (n < 4 || !text_equal(file + n - 3, ".so")) return "its name is not lib<model>.so: it is no model's library";
    l->name = file, l->name_length = n - 3;
    const char *error = relocate(l, plain, plain_bytes);
    return error ? error : relocate(l, jumps, jump_bytes);
}

/* Returns NULL, or why it cannot be loaded. */
static inline const char *library_load(library *l, const char *file, size_t file_bytes) {
    const elf_header *h = (const elf_header *)file;
    if (file_bytes < sizeof *h || memcmp(h->identity, "\177ELF\2\1", 6)) return "it is no 64-bit ELF file";
    if (h->machine != ELF_MACHINE) return "it is made for another machine";
    if (h->type != 3 || h->program_bytes != sizeof(elf_segment)) return "it is no shared library";
    if (h->program_headers > file_bytes || h->n_program * sizeof(elf_segment) > file_bytes - h->program_headers)
        return "it is cut off";
    const elf_segment *s = (const elf_segment *)(file + h->program_headers), *end = s + h->n_program, *dynamic = NULL;
    for (const elf_segment *p = s; p < end; p++) {
        if (p->type == SEGMENT_DYNAMIC) dynamic = p;
        if (p->type != SEGMENT_LOAD) continue;
        if (p->offset > file_bytes || p->file_bytes > file_bytes - p->offset || p->memory_bytes < p->file_bytes)
            return "it is cut off";
        if (p->address + p->memory_bytes > l->bytes) l->bytes = p->address + p->memory_bytes;
    }
    if (!dynamic || l->bytes > (1ul << 32) || dynamic->address + sizeof(elf_dynamic) > l->bytes)
        return "it is no shared library";
    l->bytes += MOST_PAGE;
    char *memory = sys_map(l->bytes + MOST_PAGE);
    if (!memory) return "out of memory";
    l->base = (char *)(((uintptr_t)memory + MOST_PAGE - 1) & ~(uintptr_t)(MOST_PAGE - 1)); /* whatever the page size */
    for (const elf_segment *p = s; p < end; p++)
        if (p->type == SEGMENT_LOAD) memcpy(l->base + p->address, file + p->offset, p->file_bytes);
    const char *error = read_dynamic(l, (const elf_dynamic *)(l->base + dynamic->address));
    if (error) return error;
    clear_instruction_cache(l->base, l->base + l->bytes);
    for (const elf_segment *p = s; p < end; p++) {
        if (p->type != SEGMENT_LOAD || p->flags & 2) continue;
        uintptr_t from = (uintptr_t)l->base + p->address;
        uintptr_t mask = SEGMENT_GRANULE - 1, first = from & ~mask, last = (from + p->memory_bytes + mask) & ~mask;
        long protection = (p->flags & 4 ? 1 : 0) | (p->flags & 1 ? 4 : 0);
        if (sys_failed(SYS3(NR_mprotect, first, last - first, protection)) && p->flags & 1)
            return "the system does not let it be executed";
    }
    return NULL;
}
#endif
