/*
 * A QEMU TCG plugin that counts how often each guest instruction runs, up to the first one of /init.
 * Writes "address count" lines to the file that $COUNTS names, then ends QEMU.
 *
 * Debian's QEMU has plugins but no header for them: these are the declarations needed, from QEMU's qemu-plugin.h, version 1.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { INLINE_ADD_U64 = 0 };
struct qemu_plugin_tb;
struct qemu_plugin_insn;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t id, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int op, void *counter, uint64_t add);
EXPORT int qemu_plugin_version = 1;

/* Open hashing by address; a boot runs some hundred thousand different instructions. */
enum { SLOT_BITS = 22, SLOTS = 1 << SLOT_BITS };
static struct { uint64_t address, count; } *slots;

static uint64_t *counter(uint64_t address)
{
	uint32_t i = (address * 0x9E3779B97F4A7C15ull) >> (64 - SLOT_BITS);

	while (slots[i].address && slots[i].address != address)
		i = (i + 1) % SLOTS;
	slots[i].address = address;
	return &slots[i].count;
}

static void finish(void)
{
	FILE *out = fopen(getenv("COUNTS"), "w");

	for (size_t i = 0; out && i < SLOTS; i++)
		if (slots[i].count)
			fprintf(out, "%016lx %lu\n", slots[i].address, slots[i].count);
	_exit(!out || fclose(out));
}

/* Called once for each block of code, before it runs for the first time. */
static void translated(uint64_t id, struct qemu_plugin_tb *block)
{
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
		uint64_t address = qemu_plugin_insn_vaddr(insn);

		if (address >> 40 == 0x7a) /* where profile.sh links /init: nothing else runs there */
			finish();
		qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD_U64, counter(address), 1);
	}
}

EXPORT int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	slots = calloc(SLOTS, sizeof *slots);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return !slots;
}
