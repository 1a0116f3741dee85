import { deferred } from '../../base/async.js';
import type { HostListener, HostSocket } from '../../host/host.js';
import { addDevice } from '../../monitor/devices.js';
import { addDrive } from '../../monitor/drives.js';
import type { Engine } from '../../monitor/engine.js';
import { QmpSession } from '../../wire/qmp/session.js';
import { HumanMonitor } from './human-monitor.js';
import { type RunOptions, type Step, withContext } from './options.js';
import { addOnBoardDisks, addVirtioDisks, type Placed } from './on-board.js';
import { StdioSocket } from './stdio.js';

/** Does all that a command line asks for, and what the machine brings by itself. Errors: they name the option. */
export async function start(engine: Engine, options: RunOptions, listeners: HostListener[]): Promise<void> {
  const isEarly = ({ kind }: Step): boolean => kind !== 'device' && kind !== 'monitor';
  const early = options.steps.filter(isEarly);
  const late = options.steps.filter((step) => !isEarly(step));
  const drives: Placed[] = [];
  for (const step of early)
    await inStep(step.text, async () => {
      if (step.kind === 'drive')
        drives.push({ drive: await addDrive(engine, step.options, step.usual), text: step.text });
      else await perform(engine, step, listeners);
    });
  await addOnBoardDisks(engine, drives);
  for (const step of late) {
    if (step.kind === 'monitor') continue;
    await inStep(step.text, () => perform(engine, step, listeners));
  }
  await addVirtioDisks(engine, drives);
  for (const step of late)
    if (step.kind === 'monitor') await inStep(step.text, () => perform(engine, step, listeners));
}

async function inStep(text: string, body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    throw text === '' ? error : withContext(text, error);
  }
}

async function perform(engine: Engine, step: Step, listeners: HostListener[]): Promise<void> {
  switch (step.kind) {
    case 'object':
      return void (await engine.graph.objects.add(step.options));
    case 'descriptor':
      return engine.host.files.descriptorSets.adopt(step.fd, step.setId, step.opaque);
    case 'blockdev':
      return void (await engine.addNode(step.options));
    case 'nbd-server':
      return engine.exports.startServer(step.address, step.properties);
    case 'export':
      return void (await engine.execute('block-export-add', step.options));
    case 'drive':
      return void (await addDrive(engine, step.options, step.usual));
    case 'device':
      return addDevice(engine, step.options, { mode: step.mode, hot: false });
    case 'monitor':
      return openMonitor(engine, step, listeners);
  }
}

type MonitorStep = Extract<Step, { kind: 'monitor' }>;

async function openMonitor(engine: Engine, step: MonitorStep, listeners: HostListener[]): Promise<void> {
  const { socket, isControl, pretty } = step;
  const serve = (connection: HostSocket): void => {
    if (isControl) new QmpSession(engine.hub, connection, { pretty });
    else serveHuman(engine, connection);
  };
  switch (socket.kind) {
    case 'stdio':
      return serve(new StdioSocket({ isEditor: !isControl }));
    case 'client':
      return serve(await engine.host.net.connect(socket.address, { receiveFds: true }));
    case 'server': {
      const connected = deferred();
      const onConnection = (connection: HostSocket): void => {
        serve(connection);
        connected.resolve();
      };
      listeners.push(await engine.host.net.listen(socket.address, onConnection, { receiveFds: true }));
      if (socket.wait) await connected.promise;
    }
  }
}

function serveHuman(engine: Engine, connection: HostSocket): void {
  let isOpen = true;
  const write = (text: string): void => {
    if (isOpen) connection.write(Buffer.from(text.replaceAll('\n', '\r\n')));
  };
  const monitor = new HumanMonitor(engine, write);
  connection.start({
    onData: (chunk) => monitor.push(chunk),
    onClose: () => void (isOpen = false),
  });
}
