import { imageOf, NBD_EXPORT, type View } from '../model.js';
import { bracketed, printable } from '../words.js';
import { Change } from './change.js';
import { isNewFile, refuse } from './checks.js';
import type { Action, Plan, PlannedCommand } from './types.js';

type Of<K extends Action['kind']> = Extract<Action, { kind: K }>;

/** Whether it is known that there is an NBD server: no query tells of one that offers nothing. */
export function servesNbd(view: View): boolean {
  return view.users.some(({ exportType }) => exportType === NBD_EXPORT);
}

/** An export over NBD, and the server for it where its socket is named. */
export function planExport(view: View, action: Of<'export'>): Plan {
  const { name, isWritable, file } = action;
  const image = imageOf(view, action.image);
  if (!image) refuse(`there is no image '${printable(action.image)}'`);
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(name)) refuse(`'${printable(name)}' is no name for an export`);
  if (view.users.some(({ id }) => id === `export:${name}`)) refuse(`there is an export '${name}'`);
  if (isWritable && image.isReadOnly) refuse(`nobody may write to ${bracketed(image)}`);
  if (file !== undefined) {
    isNewFile(view, file);
    if (servesNbd(view)) refuse('an NBD server runs already: leave the socket out');
  }
  const change = new Change(view);
  const user = { id: `export:${name}`, kind: 'export', label: name, imageId: image.id } as const;
  change.addUser({ ...user, exportType: NBD_EXPORT });
  const what = `${bracketed(image)} as '${name}'${isWritable ? ' for writing' : ''}`;
  return {
    action,
    words: file === undefined ? [offeredBy(view, what)] : startWords(file, name, what),
    commands: [
      ...(file === undefined ? [] : [startAt(file)]),
      {
        execute: 'block-export-add',
        arguments: { type: NBD_EXPORT, id: name, 'node-name': image.id, name, writable: isWritable },
      },
    ],
    bytesAtMost: 0,
    invalid: [],
    after: change.result(),
    undo: file === undefined ? 'Take the export away.' : 'Take the export away, and end the NBD server.',
    takenBackBy: { kind: 'unexport', name, ...(file !== undefined && { isServerEnded: true }) },
  };
}

function offeredBy(view: View, what: string): string {
  const condition = servesNbd(view) ? '' : ', which must have been started,';
  return `The server's NBD server${condition} offers ${what}.`;
}

function startWords(file: string, name: string, what: string): string[] {
  const uri = `nbd+unix:///${name}?socket=${encodeURIComponent(file).replaceAll('%2F', '/')}`;
  return [
    `An NBD server is started at the unix socket ${printable(file)}; whoever may open that file is its client.`,
    `It offers ${what}: ${uri}`,
  ];
}

function startAt(path: string): PlannedCommand {
  return {
    execute: 'nbd-server-start',
    arguments: { addr: { type: 'unix', data: { path } } },
    takenBackBy: 'nbd-server-stop',
  };
}

/** What to do, where a server refuses an export for want of what no query tells. */
export function exportHint(refusal: string): string | undefined {
  if (/NBD server already running/.test(refusal)) return 'Leave the socket of the NBD server out: one runs';
  if (/NBD server not running/.test(refusal))
    return 'Name a socket, at which an NBD server is started for it';
  return undefined;
}

export function planUnexport(view: View, { name, isServerEnded, ...action }: Of<'unexport'>): Plan {
  const id = `export:${name}`;
  if (!view.users.some((user) => user.id === id)) refuse(`there is no export '${printable(name)}'`);
  const change = new Change(view);
  change.removeUser(id);
  const after = change.result();
  const isEnd = isServerEnded === true && !servesNbd(after);
  return {
    action: { ...action, name, ...(isServerEnded !== undefined && { isServerEnded }) },
    words: [
      `Nobody can read '${printable(name)}' any more; while clients are connected it is refused.`,
      ...(isEnd ? ['The NBD server, which then offers nothing, ends.'] : []),
    ],
    commands: [
      { execute: 'block-export-del', arguments: { id: name } },
      ...(isEnd ? [{ execute: 'nbd-server-stop', arguments: {} }] : []),
    ],
    bytesAtMost: 0,
    invalid: [],
    after,
    undo: 'Export it again.',
  };
}
