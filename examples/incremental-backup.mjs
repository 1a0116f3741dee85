// Backs up a disk of a running livedisk (or QEMU): a full copy at first, and then, each time, what was written since.
//
//   node incremental-backup.mjs SOCKET NODE FOLDER
//
// Each backup is FOLDER/backup-N.qcow2 with the one before as its backing file, so each opens as the whole disk of its
// moment. What was written since the last one is noted by a dirty bitmap that the image keeps.
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { createImage, createRealHost } from 'livedisk';
import { QmpClient } from 'livedisk/qmp';

const BITMAP = 'incremental-backup';
const TARGET = 'incremental-backup-target';
const JOB = 'incremental-backup';

const [socket, node, folderName] = process.argv.slice(2);
if (folderName === undefined) {
  console.error('usage: incremental-backup.mjs SOCKET NODE FOLDER');
  process.exit(1);
}
const folder = resolve(folderName);
mkdirSync(folder, { recursive: true });

const qmp = await QmpClient.connect(createRealHost(), { type: 'unix', path: socket });
try {
  const { name, lengthBytes } = await backUp();
  console.log(`${name}: ${lengthBytes} bytes copied`);
} finally {
  qmp.close();
}

async function backUp() {
  const nodes = await qmp.execute('query-named-block-nodes', { flat: true });
  const disk = nodes.find((one) => one['node-name'] === node);
  if (!disk) throw new Error(`There is no node '${node}'`);
  const bitmap = (disk['dirty-bitmaps'] ?? []).find((one) => one.name === BITMAP);
  const last = newest();
  // Without the bitmap, or with one that is not to be relied upon, only a full copy is right.
  const isIncrement = last !== undefined && bitmap !== undefined && bitmap.inconsistent !== true;
  const number = last === undefined ? 0 : last.number + 1;
  const name = `backup-${number}.qcow2`;
  // Whoever looks into the folder finds whole backups only.
  const part = join(folder, `${name}.part`);
  rmSync(part, { force: true });
  await createImage({
    filename: part,
    format: 'qcow2',
    sizeBytes: disk.image['virtual-size'],
    ...(isIncrement && { backing: { filename: last.name, format: 'qcow2' } }),
  });
  const file = { driver: 'file', filename: part };
  await qmp.execute('blockdev-add', { driver: 'qcow2', 'node-name': TARGET, file });
  try {
    const lengthBytes = await copy(isIncrement, bitmap);
    await qmp.execute('blockdev-del', { 'node-name': TARGET });
    renameSync(part, join(folder, name));
    return { name, lengthBytes };
  } catch (error) {
    await qmp.execute('blockdev-del', { 'node-name': TARGET }).catch(() => undefined);
    rmSync(part, { force: true });
    throw error;
  }
}

/** The bitmap begins at the very moment that the copy is of, and when a copy fails it still knows all. */
async function copy(isIncrement, bitmap) {
  const ended = jobEnd();
  const job = { 'job-id': JOB, device: node, target: TARGET };
  const backup = isIncrement ? { ...job, sync: 'incremental', bitmap: BITMAP } : { ...job, sync: 'full' };
  const begun = [];
  if (!isIncrement && bitmap) begun.push({ type: 'block-dirty-bitmap-remove', data: { node, name: BITMAP } });
  if (!isIncrement)
    begun.push({ type: 'block-dirty-bitmap-add', data: { node, name: BITMAP, persistent: true } });
  await qmp.execute('transaction', { actions: [...begun, { type: 'blockdev-backup', data: backup }] });
  const { len, error } = await ended;
  if (error !== undefined) throw new Error(`The backup failed: ${error}`);
  return len;
}

function jobEnd() {
  return new Promise((done) => {
    const stop = qmp.onEvent(({ event, data }) => {
      if (data.device !== JOB) return;
      if (event === 'BLOCK_JOB_CANCELLED') done({ error: 'it was cancelled' });
      else if (event === 'BLOCK_JOB_COMPLETED') done(data);
      else return;
      stop();
    });
  });
}

function newest() {
  if (!existsSync(folder)) return undefined;
  const numbers = readdirSync(folder).flatMap((name) => /^backup-(\d+)\.qcow2$/.exec(name)?.[1] ?? []);
  const number = Math.max(-1, ...numbers.map(Number));
  return number < 0 ? undefined : { number, name: `backup-${number}.qcow2` };
}
