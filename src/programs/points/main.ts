import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { lookAt } from './look.js';
import { drawChains } from '../../view/text.js';
import { printable, printableJson } from '../../view/words.js';
import { parseWords, type ScreenIo, standardIo, wantsColour, wholeNumber } from '../screen/arguments.js';
import { isSocket } from '../screen/show.js';
import { connectTarget, openTarget, type PointsTarget } from './targets.js';
import { listText, planText } from './text.js';

export const POINTS_USAGE = `usage: livedisk points [VERB] [OPTION]... SOCKET|IMAGE [NAME]

Points in time of disks: of a running livedisk, qemu-storage-daemon or QEMU by its QMP socket (PATH, unix:PATH or
HOST:PORT), or of an image that no program has open.

  list             the points, and the chains that hold them (when no verb is given)
  create           give this moment a name
  delete           delete a point, by the cheapest copy
  revert           go back to a point, or --image NODE: what was written since is left

  --dry-run        say what would happen
  --disk NODE      of this disk (more than once; default: all); NODE=FILE says where its new image is to be
  --image NODE     of revert: this image of the chain, in place of a point's NAME
  --keep N         of create: delete the oldest points beyond so many
  --quiesce PATH   of create: freeze the guest's file systems by the socket of its agent
  --quiesce-timeout MS
                   for at most so long (default 10000)
  --folder FOLDER  from where a QEMU sees relative names
  -f, --format F   of an image: its format (default: what it looks like)
  --json           print the answer as QMP has it
  --color=WHEN     always, never or auto
`;

const OPTIONS = {
  'dry-run': { type: 'boolean' },
  disk: { type: 'string', multiple: true },
  image: { type: 'string' },
  keep: { type: 'string' },
  quiesce: { type: 'string' },
  'quiesce-timeout': { type: 'string' },
  folder: { type: 'string' },
  format: { type: 'string', short: 'f' },
  json: { type: 'boolean' },
  color: { type: 'string' },
  help: { type: 'boolean', short: 'h' },
} as const;

type Values = ReturnType<typeof parseWords<typeof OPTIONS>>['values'];

const VERBS = ['list', 'create', 'delete', 'revert'] as const;
type Verb = (typeof VERBS)[number];

interface Asked {
  readonly verb: Verb;
  readonly target: string;
  readonly name: string;
  readonly values: Values;
}

/** `livedisk points`. Errors: those of connecting, opening and the commands. */
export async function pointsMain(args: readonly string[], io: ScreenIo = standardIo()): Promise<number> {
  const { values, positionals } = parseWords(args, OPTIONS, POINTS_USAGE);
  if (values.help === true) {
    io.output.write(POINTS_USAGE);
    return 0;
  }
  const asked = askedBy(values, positionals);
  const target = await targetOf(asked, io);
  try {
    await perform(asked, target, io);
  } finally {
    await target.close();
  }
  return 0;
}

/** Errors: invalid, with the usage as hint. */
function askedBy(values: Values, positionals: readonly string[]): Asked {
  const [first = ''] = positionals;
  const found = VERBS.find((verb) => verb === first);
  const verb = found ?? 'list';
  const [target, name = '', ...more] = found ? positionals.slice(1) : positionals;
  const refuse = (text: string): never => {
    throw new BlockError('invalid', `points: ${text}`, { hint: POINTS_USAGE });
  };
  if (target === undefined) return refuse('a SOCKET or IMAGE is needed');
  if (more.length > 0 || (verb === 'list' && name !== ''))
    return refuse(`'${more[0] ?? name}' is one word too many`);
  if (values.image !== undefined && verb !== 'revert') return refuse('--image is of revert');
  if (values.image !== undefined && name !== '') return refuse(`--image is in place of the NAME '${name}'`);
  if (verb !== 'list' && name === '' && values.image === undefined)
    return refuse(`${verb} needs the point's NAME`);
  const ofCreate = (['keep', 'quiesce', 'quiesce-timeout'] as const).find((key) => values[key] !== undefined);
  if (verb !== 'create' && ofCreate !== undefined) return refuse(`--${ofCreate} is of create`);
  return { verb, target, name, values };
}

async function targetOf({ verb, target, values }: Asked, { host }: ScreenIo): Promise<PointsTarget> {
  if (await isSocket(host, target)) return connectTarget(host, target, values.folder);
  if (values.quiesce !== undefined)
    throw new BlockError('invalid', 'points: an image at rest has no guest to quiesce');
  const writes = verb !== 'list' && values['dry-run'] !== true;
  return openTarget(host, target, { format: values.format, writes });
}

async function perform({ verb, name, values }: Asked, target: PointsTarget, io: ScreenIo): Promise<void> {
  const { output } = io;
  const disks = (values.disk ?? []).map(diskOf);
  const nodes = disks.length === 0 ? undefined : disks.map(({ node }) => node);
  const isDryRun = values['dry-run'] === true;
  const common = { name, 'dry-run': isDryRun };
  const tell = (answer: { plan: Parameters<typeof planText>[0] }, text = ''): void => {
    if (values.json === true) output.write(`${printableJson(answer, 2)}\n`);
    else output.write(`${planText(answer.plan)}${text}`);
  };
  switch (verb) {
    case 'list': {
      const answer = await target.list(given({ nodes }));
      if (values.json === true) output.write(`${printableJson(answer, 2)}\n`);
      else {
        const view = await lookAt(target);
        const columns = output.columns ?? 80;
        const chains = drawChains(view, { columns, isColoured: wantsColour(values.color, output) });
        output.write(`${listText(answer)}\n${chains}\n`);
      }
      return;
    }
    case 'create': {
      const { keep: most, quiesce, 'quiesce-timeout': timeout } = values;
      const keep = most === undefined ? undefined : wholeNumber('--keep', most, 1);
      const timeoutMs = timeout === undefined ? undefined : wholeNumber('--quiesce-timeout', timeout, 1);
      const wanted = disks.length === 0 ? undefined : disks;
      const more = given({ disks: wanted, keep, quiesce, 'quiesce-timeout': timeoutMs });
      const answer = await target.create({ ...common, ...more });
      const files = answer.images.map(
        ({ disk, file }) => `${printable(disk)}: the active image is ${printable(file)}\n`,
      );
      return tell(answer, isDryRun ? '' : files.join(''));
    }
    case 'delete':
      return tell(await target.delete({ ...common, ...given({ nodes }) }));
    case 'revert': {
      const wanted = disks.length === 0 ? undefined : disks;
      const goal = values.image === undefined ? { name } : { image: values.image };
      const answer = await target.revert({
        ...goal,
        'dry-run': isDryRun,
        ...given({ disks: wanted }),
      });
      const files = answer.images.map(
        ({ disk, file }) => `${printable(disk)}: the active image is ${printable(file)}\n`,
      );
      return tell(answer, isDryRun ? '' : files.join(''));
    }
  }
}

function diskOf(text: string): { node: string; file?: string } {
  const at = text.indexOf('=');
  return at < 0 ? { node: text } : { node: text.slice(0, at), file: text.slice(at + 1) };
}
