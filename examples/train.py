"""Training from Python: the loop is yours. A million steps take about three minutes; give fewer to try it out.

python examples/train.py 20000
"""

import sys

import shoal

total_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000

env = shoal.make("mpe/simple_spread", num_envs=64)
algorithm = shoal.build("maddpg", env.spec, update_every=32, batch_size=512, buffer_size=500_000, warmup=10_000)
for progress in shoal.train(algorithm, env, total_steps=total_steps):
    if progress.every(50_000):
        print(progress.env_steps, shoal.evaluate(algorithm, env, episodes=100))

view, memory = env.reset(seed=1), algorithm.initial_memory(env.num_envs)
actions, memory = algorithm.act(view, memory, explore=False)
print({group: action[0].tolist() for group, action in actions.items()})
