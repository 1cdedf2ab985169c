"""Short programs, each showing one idea. Run them as files: python examples/blast.py --help"""
