// Boots a disk and waits for a text on its serial line; the image itself is not changed.
//
//   node boot-test.mjs IMAGE TEXT [SECONDS]
//
// What the guest writes goes to an overlay that is thrown away. The machine is a qemu-system-x86_64, and has the disk
// over NBD from the engine in this process.
import { spawn } from 'node:child_process';
import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createEngine } from 'livedisk';

const [image, text, seconds = '60'] = process.argv.slice(2);
if (text === undefined) {
  console.error('usage: boot-test.mjs IMAGE TEXT [SECONDS]');
  process.exit(1);
}

const folder = mkdtempSync(join(tmpdir(), 'boot-test-'));
try {
  process.exitCode = (await boots()) ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}

async function boots() {
  const engine = await createEngine({ kind: 'machine' });
  try {
    const file = { driver: 'file', filename: resolve(image) };
    const base = await engine.addNode({ driver: 'qcow2', 'node-name': 'image', 'read-only': true, file });
    const filename = join(folder, 'overlay.qcow2');
    const backing = { filename: resolve(image), format: 'qcow2' };
    await engine.createImage({ filename, format: 'qcow2', sizeBytes: base.lengthBytes, backing });
    await engine.addNode({
      driver: 'qcow2',
      'node-name': 'disk',
      file: { driver: 'file', filename },
      backing: 'image',
    });
    const path = join(folder, 'disk.sock');
    await engine.addDevice('disk', { id: 'disk', endpoint: { type: 'unix', path } });
    const started = Date.now();
    const isThere = await untilSaid(path);
    const stats = await engine.execute('query-blockstats');
    const { rd_operations: reads, wr_operations: writes } = stats[0].stats;
    const ms = Date.now() - started;
    console.log(`${isThere ? 'booted' : 'did not boot'} in ${ms} ms: ${reads} reads, ${writes} writes`);
    return isThere;
  } finally {
    await engine.close();
  }
}

/** Whether the machine says the text in time. */
function untilSaid(path) {
  const machine = spawn(
    'qemu-system-x86_64',
    [
      ...(hasKvm() ? ['-accel', 'kvm'] : ['-accel', 'tcg']),
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-m', '256', '-serial', 'stdio'],
      ...['-blockdev', `driver=nbd,node-name=disk,server.type=unix,server.path=${path},export=disk`],
      ...['-device', 'virtio-blk-pci,drive=disk,bootindex=0'],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  return new Promise((resolve, reject) => {
    let said = '';
    let isThere = false;
    const timer = setTimeout(() => machine.kill('SIGKILL'), 1000 * Number(seconds));
    machine.once('error', reject);
    machine.stdout.on('data', (chunk) => {
      said += chunk;
      isThere ||= said.includes(text);
      if (isThere) machine.kill('SIGKILL');
    });
    machine.once('close', () => {
      clearTimeout(timer);
      resolve(isThere);
    });
  });
}

function hasKvm() {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return process.env.BOOT_TEST_KVM !== 'off';
  } catch {
    return false;
  }
}
