import assert from 'node:assert/strict';
import type { NodeOptions } from '../../src/block/driver.js';
import { allDrivers } from '../../src/drivers/index.js';
import { SftpServer } from '../kit/sftp-server.js';
import { TestBed } from '../kit/test-disk.js';

/** The words with which ssh is started for these options. */
async function commandFor(outer: TestBed, options: NodeOptions): Promise<string[]> {
  const server = new SftpServer();
  server.says = 'debug1: Server host key: ssh-rsa MD5:01:02\n';
  server.files.set('/a', Buffer.from('one'));
  server.files.set('/b', Buffer.from('other'));
  const bed = new TestBed(server.hostOver(outer.host), allDrivers, outer.folder);
  const place = { driver: 'ssh', server: { host: 'h', port: '7' }, path: '/a', ...options };
  const disk = await bed.open(place, { readOnly: true });
  const first = (await disk.read(0, 1)).toString();
  await disk.close();
  return [...(server.commands[0] ?? []), first];
}

/** What the options of files over SSH do. */
export const SSH_SHOWS: Record<string, (bed: TestBed) => Promise<void>> = {
  server: async (bed) => {
    const words = await commandFor(bed, {});
    assert.deepEqual([words[words.indexOf('-p') + 1], words.at(-3)], ['7', 'h']);
  },
  path: async (bed) => assert.equal((await commandFor(bed, { path: '/b' })).at(-1), 'o'),
  user: async (bed) => {
    const words = await commandFor(bed, { user: 'somebody' });
    assert.equal(words[words.indexOf('-l') + 1], 'somebody');
  },
  'host-key-check': async (bed) => {
    const strict = 'StrictHostKeyChecking=yes';
    assert.ok((await commandFor(bed, {})).includes(strict));
    assert.ok(!(await commandFor(bed, { 'host-key-check': { mode: 'none' } })).includes(strict));
    await commandFor(bed, { 'host-key-check': { mode: 'hash', type: 'md5', hash: '0102' } });
    const wrong = commandFor(bed, { 'host-key-check': { mode: 'hash', type: 'md5', hash: '0103' } });
    await assert.rejects(wrong, { message: /does not match host_key_check 'md5:0103'$/ });
  },
};
