import { spawnSync } from 'node:child_process';
import { symlinkSync } from 'node:fs';
import { test } from 'node:test';
import { loopDevice } from '../kit/loop-device.js';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

test('devices of the host are opened, refused and formatted as QEMU does', { skip }, async (context) => {
  const pair = new ToolPair(context);
  pair.prepare('truncate -s 4M disk', 'qemu-img create -q -f qcow2 a.q 2M', 'mkdir folder');
  for (const side of ['ours', 'theirs'] as const) {
    const device = loopDevice(context, pair.path(side, 'disk'));
    if (device === undefined) return;
    symlinkSync(device, pair.path(side, 'dev'));
  }
  for (const line of [
    'img info -f raw dev',
    'img info --image-opts driver=host_device,filename=dev',
    'img info --image-opts driver=file,filename=dev',
    'img info --image-opts driver=raw,file.filename=dev',
    'img info --image-opts driver=raw,file.driver=file,file.filename=dev',
    'img info -f raw file:dev',
    'img info -f raw host_device:dev',
    'img info -f host_device dev',
    'img info -f host_device a.q',
    'img info --image-opts driver=host_device,filename=a.q',
    'img info --image-opts driver=host_device,filename=nofile',
    'img info --image-opts driver=host_device,filename=folder',
    'img info --image-opts driver=host_device,filename=',
    'img info --image-opts driver=host_device',
    "io --image-opts driver=host_device,filename=folder -c 'read 0 1'",
    "io -f raw dev -c 'write -P 5 0 64k' -c 'read -P 5 0 64k' -c 'write 4M 512' -c 'truncate 8M' -c 'length'",
    "io -f raw dev -c 'write -z 64k 64k' -c 'discard 0 4k' -c 'read -P 0 64k 64k'",
    'img map -f raw dev',
    'img create -f raw dev 8M',
    'img create -f raw dev 1M',
    'img create -f qcow2 dev 8M',
    'img info dev',
    'img check dev',
    'img convert -O raw a.q dev',
    'img info dev',
    'img compare -f qcow2 -F raw a.q dev',
  ])
    await pair.alike(line);
});
