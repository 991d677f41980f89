"""Controls that no paper proposes. Each isolates one idea of the schemes it is compared with."""
