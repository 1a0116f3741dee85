import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { runHere } from '../kit/run-compute.js';
import { aesCbc, inflateRaw, zstdDecompress } from '../../src/codec/index.js';

/** The codecs on bytes that qemu-img has made. */

const folder = mkdtempSync(join(tmpdir(), 'livedisk-codec-'));
after(() => rmSync(folder, { recursive: true }));
const isInstalled = spawnSync('qemu-img', ['--version']).error === undefined;
const skip = isInstalled ? false : 'qemu-img is not installed';

const DISK_BYTES = 4 * 1024 * 1024;
/** Lines of text. */
const content = Buffer.from(
  Array.from({ length: DISK_BYTES / 32 }, (_, i) => `line ${i * 7919}\n`.padEnd(32)).join(''),
);
writeFileSync(join(folder, 'raw'), content);

function qemuImg(...args: string[]): void {
  const { status, stderr } = spawnSync('qemu-img', args, { cwd: folder, encoding: 'utf8' });
  assert.equal(status, 0, stderr);
}

/** The entries of an image's L2 tables, all that there are, with the guest offset of each. */
function* entries(image: Buffer): Generator<{ guestOffset: number; entry: bigint }> {
  const clusterBytes = 2 ** image.readUInt32BE(20);
  const l1Offset = Number(image.readBigUInt64BE(40));
  for (let l1Index = 0; l1Index < image.readUInt32BE(36); l1Index++) {
    const l2Offset = Number(image.readBigUInt64BE(l1Offset + l1Index * 8) & 0x00fffffffffffe00n);
    if (l2Offset === 0) continue;
    for (let i = 0; i < clusterBytes / 8; i++) {
      const entry = image.readBigUInt64BE(l2Offset + i * 8);
      if (entry !== 0n) yield { guestOffset: (l1Index * (clusterBytes / 8) + i) * clusterBytes, entry };
    }
  }
}

/** qcow2 specification, "Compressed Clusters Descriptor": what a compressed entry points at, to the end of a sector. */
function compressedBytes(image: Buffer, entry: bigint, clusterBits: number): Buffer | undefined {
  if ((entry & (1n << 62n)) === 0n) return undefined;
  const offsetBits = BigInt(62 - (clusterBits - 8));
  const offset = Number(entry & ((1n << offsetBits) - 1n));
  const sectors = Number((entry & ((1n << 62n) - 1n)) >> offsetBits);
  return image.subarray(offset, Math.floor(offset / 512) * 512 + (sectors + 1) * 512);
}

for (const type of ['zlib', 'zstd'])
  for (const clusterBits of [9, 12, 16, 21])
    test(`qemu-img's ${type} clusters of 2^${clusterBits} bytes are decompressed`, { skip }, async () => {
      const options = `compression_type=${type},cluster_size=${2 ** clusterBits}`;
      qemuImg('convert', '-c', '-O', 'qcow2', '-o', options, 'raw', 'compressed');
      const image = readFileSync(join(folder, 'compressed'));
      await zstdDecompress.prepare?.();
      let count = 0;
      for (const { guestOffset, entry } of entries(image)) {
        const input = compressedBytes(image, entry, clusterBits);
        if (!input) continue;
        const { value, output } =
          type === 'zstd'
            ? runHere(zstdDecompress, input, 2 ** clusterBits, undefined)
            : runHere(inflateRaw, input, 2 ** clusterBits, { windowBits: 12 });
        assert.equal(value, 2 ** clusterBits);
        assert.deepEqual(output, content.subarray(guestOffset, guestOffset + 2 ** clusterBits));
        count++;
      }
      assert.ok(count > 0, 'no cluster was compressed');
    });

test("qemu-img's clusters of AES-CBC are decrypted", { skip }, () => {
  const secret = 'sixteen letters!';
  qemuImg(
    ...['convert', '-O', 'qcow2', '--object', `secret,id=key,data=${secret}`],
    ...['-o', 'encrypt.format=aes,encrypt.key-secret=key', 'raw', 'encrypted'],
  );
  const image = readFileSync(join(folder, 'encrypted'));
  const key = Buffer.from(secret);
  for (const { guestOffset, entry } of entries(image)) {
    const at = Number(entry & 0x00fffffffffffe00n);
    const { output } = runHere(aesCbc, image.subarray(at, at + 65536), 65536, {
      ...{ key, direction: 'decrypt', sectorBytes: 512 },
      ...{ firstSector: guestOffset / 512, initialVector: 'plain64' },
    });
    assert.deepEqual(output, content.subarray(guestOffset, guestOffset + 65536));
  }
});
