import { BlockError } from '../base/error.js';
import type { TracePoint } from '../base/trace.js';
import { type HmpArguments, HmpSyntaxError } from './hmp-arguments.js';
import type { HmpCommand } from './hmp-command.js';
import type { Parts } from './parts.js';

export type Traced = Parts<'host'>;

export function registerTrace(engine: Traced & Parts<'command'>): void {
  engine.command('trace-event-get-state', ({ name, vcpu }) =>
    pointsFor(engine, name, vcpu).map((point) => ({
      name: point.name,
      state: point.isOn ? 'enabled' : 'disabled',
      vcpu: false,
    })),
  );
  engine.command('trace-event-set-state', ({ name, enable, vcpu }) => {
    for (const point of pointsFor(engine, name, vcpu)) point.isOn = enable;
  });
}

/** Errors: in QEMU's words; there is no processor here, and a name without `*` is that of a point. */
function pointsFor({ host: { trace } }: Traced, name: string, vcpu: number | undefined): TracePoint[] {
  if (vcpu !== undefined) throw new BlockError('invalid', `invalid vCPU index ${vcpu}`);
  if (name.includes('*')) return trace.matching(name);
  const point = trace.find(name);
  if (!point) throw new BlockError('not-found', `unknown event "${name}"`);
  return [point];
}

export const TRACE_HMP: ReadonlyArray<HmpCommand<Traced>> = [
  {
    name: 'trace-event',
    parameters: 'name on|off [vcpu]',
    help: 'changes status of a specific trace event (vcpu: vCPU to set, default is all)',
    syntax: {
      operands: [{ missing: 'string expected' }, { missingWord: "Expected 'on' or 'off'" }, 'optional'],
    },
    run: (engine, given) => told(() => switchPoints(engine, given)),
  },
];

export const TRACE_INFO: ReadonlyArray<HmpCommand<Traced>> = [
  {
    name: 'trace-events',
    parameters: '[name] [vcpu]',
    help: 'show available trace-events & their state (name: event name pattern; vcpu: vCPU to query, default is any)',
    syntax: { operands: ['optional', 'optional'] },
    run: (engine, { operands: [name = '*', vcpu] }) =>
      told(() =>
        pointsFor(engine, name, numberOf(vcpu, 'info trace-events'))
          .map((point) => `${point.name} : state ${point.isOn ? 1 : 0}\n`)
          .join(''),
      ),
  },
];

function switchPoints(engine: Traced, { operands: [name = '', state, vcpu] }: HmpArguments): string {
  if (state !== 'on' && state !== 'off')
    throw new HmpSyntaxError(`Expected 'on' or 'off'\nTry "help trace-event" for more information`);
  for (const point of pointsFor(engine, name, numberOf(vcpu, 'trace-event'))) point.isOn = state === 'on';
  return '';
}

function numberOf(text: string | undefined, command: string): number | undefined {
  if (text === undefined) return undefined;
  if (/^\d+$/.test(text)) return Number(text);
  throw new HmpSyntaxError(
    `invalid char '${text.charAt(0)}' in expression\nTry "help ${command}" for more information`,
  );
}

/** What is wrong is told without a word in front, as these commands of QEMU's do. */
function told(body: () => string): string {
  try {
    return body();
  } catch (error) {
    if (error instanceof BlockError) return `${error.message}\n`;
    throw error;
  }
}
