import { readAnswers } from '../../view/answers.js';
import { buildView } from '../../view/build.js';
import type { View } from '../../view/model.js';
import type { PointsTarget } from './targets.js';

/** What there is to draw; who keeps an image at rest open here is nobody to tell of. */
export async function lookAt(target: PointsTarget): Promise<View> {
  const view = buildView(await readAnswers((command, args) => target.execute(command, args)));
  return { ...view, users: view.users.filter(({ kind }) => kind !== 'other') };
}
