import assert from 'node:assert/strict';
import { test } from 'node:test';
import { splitCommandLine } from './command-line.js';
import { joinSchemas } from './joined-schema.js';
import { takeMachineSwitch, withMachineSwitch } from './machine.js';

const split = (line: string): ReturnType<typeof splitCommandLine> => splitCommandLine(line.split(' '));

test('a command line is taken apart: disks and monitors, and the machine', () => {
  const line = split(
    '-M q35 -m 512 -smp 2 -drive if=virtio,file=a -device virtio-scsi-pci,id=s -device scsi-hd,drive=b ' +
      '-device virtio-net-pci -chardev null,id=c -chardev socket,id=m,path=q -mon chardev=m,mode=control ' +
      '-serial chardev:c -drive if=pflash,file=f -object secret,id=x,data=y -object throttle-group,id=g ' +
      '-object rng-random,id=r -device {"driver":"ide-hd","drive":"d"} -S disk.img -enable-kvm',
  );
  assert.deepEqual(
    line.ours.join(' '),
    '-M q35 -m 512 -drive if=virtio,file=a -device virtio-scsi-pci,id=s -device scsi-hd,drive=b -chardev socket,id=m,path=q ' +
      '-mon chardev=m,mode=control -object secret,id=x,data=y -object throttle-group,id=g -device {"driver":"ide-hd","drive":"d"} -S disk.img',
  );
  assert.deepEqual(
    line.theirs.map((words) => ('device' in words ? `#${words.device}` : words.join(' '))),
    [
      ...['-M q35', '-m 512', '-smp 2', '-device virtio-scsi-pci,id=s', '#1', '-device virtio-net-pci'],
      ...['-chardev null,id=c', '-serial chardev:c', '-drive if=pflash,file=f', '-object secret,id=x,data=y'],
      ...['-object rng-random,id=r', '#2', '-enable-kvm'],
    ],
  );
  assert.deepEqual([line.devices, line.hasAccelerator, line.memory], [3, true, 'default']);
});

test('trace points are logged here, and all else by the machine', () => {
  const theirs = (line: string): string =>
    split(line)
      .theirs.map((words) => ('device' in words ? '' : words.join(' ')))
      .join(' ');
  assert.equal(theirs('-d int,cpu -D log'), '-d int,cpu -D log');
  assert.deepEqual(split('-d int,cpu -D log').ours, []);
  for (const line of ['-d trace:job_*,trace:nbd_request -D log', '-D log -trace job_*'])
    assert.deepEqual([split(line).ours.join(' '), theirs(line)], [line, '']);
  assert.throws(() => split('-d int,trace:job_* -D log'), { message: /^-d int,trace:job_\*: not supported/ });
});

test('what is said of memory and processors is heard', () => {
  assert.equal(split('-M q35,accel=tcg').hasAccelerator, true);
  assert.equal(split('-M q35').hasAccelerator, false);
  const own = '-object memory-backend-ram,id=m,size=1G -machine memory-backend=m';
  assert.equal(split(own).memory, 'private');
  assert.equal(split(own.replace('id=m', 'id=m,share=on')).memory, 'shared');
  assert.equal(split('-mem-path /x').memory, 'private');
  assert.deepEqual(split('-incoming defer').ours, ['-incoming', 'defer']);
  assert.deepEqual(split('-incoming defer').theirs, []);
  assert.throws(() => split('-m'), /-m: requires an argument/);
});

test('the terminal is the console where QEMU has it there', () => {
  const console = '-chardev stdio,id=livedisk.console,mux=on,signal=off -serial chardev:livedisk.console';
  const words = (line: string): string =>
    split(line)
      .theirs.flatMap((piece) => ('device' in piece ? [] : piece))
      .join(' ');
  assert.equal(words('-nographic'), `-nographic ${console}`);
  assert.equal(words('-serial mon:stdio'), console);
  assert.equal(words('-nographic -serial null'), '-nographic -serial null');
});

test('the switch is not the option of that name', () => {
  assert.equal(takeMachineSwitch(['--machine', 'q35']), undefined);
  assert.equal(takeMachineSwitch(['-machine', '-x']), undefined);
  assert.deepEqual(takeMachineSwitch(['-m', '1', '--machine', '-S']), { rest: ['-m', '1', '-S'] });
  assert.deepEqual(takeMachineSwitch(['--machine']), { rest: [] });
  assert.deepEqual(takeMachineSwitch(['--machine=/p', 'a']), { rest: ['a'], asked: '/p' });
  assert.deepEqual(withMachineSwitch(['a.img']), ['--machine=qemu-system-x86_64', 'a.img']);
  assert.deepEqual(withMachineSwitch(['--machine=/p']), ['--machine=/p']);
});

test('schemas are joined: each command once, types renumbered, nothing that nobody uses', () => {
  const type = (name: string, member: string, of: string): { [key: string]: unknown } => ({
    ...{ name, 'meta-type': 'object', members: [{ name: member, type: of }] },
  });
  const command = (name: string, args: string): { [key: string]: unknown } => ({
    ...{ name, 'meta-type': 'command', 'arg-type': args, 'ret-type': args },
  });
  const ours = [command('a', '1'), command('stop', '2'), type('1', 'x', 'str'), type('2', 'y', 'str')];
  const theirs = [command('a', '0'), command('stop', '1'), type('0', 'p', 'str'), type('1', 'q', '[1]')];
  const array = { name: '[1]', 'meta-type': 'array', 'element-type': '1' };
  const joined = joinSchemas(ours as never, [...theirs, array] as never, (name) => name === 'stop');
  assert.deepEqual(joined, [
    command('a', '1'),
    command('stop', '4'),
    type('1', 'x', 'str'),
    type('4', 'q', '[4]'),
    { name: '[4]', 'meta-type': 'array', 'element-type': '4' },
  ]);
});
