import { BlockError, errnoError } from '../base/error.js';
import { resolveBackingOf } from '../block/full-filename.js';
import { endWritable, isMeantReadOnly } from '../block/lent-writable.js';
import type { Node } from '../block/node.js';
import type { GraphTransaction } from '../block/transaction.js';
import type { JobPlace } from './job-graph.js';
import { mayReplace, type MirrorNodes, type MirrorPlan } from './plans/mirror.js';

/**
 * In a drained section: the target takes the place of the source, or of what it replaces, with its backing file. Of who is in
 * the way a line of the program's tells; to the job it is EPERM, as in QEMU.
 */
export async function takePlace(place: JobPlace, plan: MirrorPlan, nodes: MirrorNodes): Promise<void> {
  try {
    await pivot(place, plan, nodes);
  } catch (error) {
    if (!(error instanceof BlockError) || (error.kind !== 'permission' && error.kind !== 'busy')) throw error;
    place.graph.onDriverLine(error.message);
    throw errnoError('EPERM', undefined, { cause: error });
  }
}

async function pivot(place: JobPlace, plan: MirrorPlan, nodes: MirrorNodes): Promise<void> {
  assertMayReplace(nodes);
  const backing = await newBacking(place, plan, nodes);
  place.thaw();
  try {
    await place.graph.transaction((transaction) => {
      if (backing) transaction.attach(nodes.target.skipFilters(), 'backing', backing);
      listPivot(transaction, place, nodes);
    });
  } catch (error) {
    if (backing) await place.graph.release([backing]);
    throw error;
  }
  place.removed();
  const { source, target, replaces = source } = nodes;
  // As what it replaces was; where that fails, it stays writable.
  if (isMeantReadOnly(replaces) && !target.readOnly)
    await endWritable(place.graph, target).catch(() => undefined);
}

/** Others may have come to what is replaced. Errors: permission. */
function assertMayReplace({ source, target, replaces }: MirrorNodes): void {
  if (!replaces || mayReplace(source, replaces)) return;
  const what = `Can no longer replace '${replaces.name}' by '${target.name}'`;
  throw new BlockError(
    'permission',
    `${what}, because it can no longer be guaranteed that doing so would not lead to an abrupt change of visible data`,
  );
}

function listPivot(transaction: GraphTransaction, place: JobPlace, nodes: MirrorNodes): void {
  const { replaces, source, target } = nodes;
  if (replaces && replaces !== source) {
    transaction.replaceNode(replaces, target);
    place.listRemoval(transaction);
  } else {
    place.listPivot(transaction, target);
  }
}

/** The backing file that the target gets with the pivot, if it is to get one. */
async function newBacking(
  place: JobPlace,
  { targetBacking, sync }: MirrorPlan,
  nodes: MirrorNodes,
): Promise<Node | undefined> {
  const { source } = nodes;
  const target = nodes.target.skipFilters();
  if (target.children.has('backing')) return undefined;
  if (targetBacking === 'source-chain')
    return sync === 'none' ? source : source.skipFilters().children.get('backing')?.node;
  const named = target.instance.backing;
  if (targetBacking !== 'open' || !named) return undefined;
  const filename = resolveBackingOf(target, named.filename);
  const backing = await place.opener.openImage(filename, named.format, { readOnly: true });
  target.automaticBacking = backing.filename;
  return backing;
}
